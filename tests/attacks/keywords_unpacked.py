# tries: pass unknown names by **
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    return jnp.sum(control, **features)
