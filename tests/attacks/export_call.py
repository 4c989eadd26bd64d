# tries: serialise by jax.export
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return jax.export.export(gate)
