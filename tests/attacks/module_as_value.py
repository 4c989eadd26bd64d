# tries: pass a module on as a value
# reason: name
def gate(sensors, features, control):
    return helper(jnp)
