# tries: pass unknown names by **
# reason: syntax
def gate(sensors, features, control):
    return jnp.sum(control, **features)
