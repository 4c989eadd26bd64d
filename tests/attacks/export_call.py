# tries: serialise by jax.export
# reason: attribute
def gate(sensors, features, control):
    return jax.export.export(gate)
