# tries: read a module's dictionary
# reason: name
def gate(sensors, features, control):
    return vars(jnp)
