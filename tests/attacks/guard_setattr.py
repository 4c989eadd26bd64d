# tries: change the guard around modules
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return jnp.__setattr__(0, 1)
