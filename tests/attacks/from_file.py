# tries: read a file as an array
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return jnp.fromfile(0)
