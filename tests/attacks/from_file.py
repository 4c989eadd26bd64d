# tries: read a file as an array
# reason: attribute
def gate(sensors, features, control):
    return jnp.fromfile(0)
