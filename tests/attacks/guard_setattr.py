# tries: change the guard around modules
# reason: attribute
def gate(sensors, features, control):
    return jnp.__setattr__(0, 1)
