# tries: use a method of the guard around modules
# reason: attribute
def gate(sensors, features, control):
    return jnp._values.items
