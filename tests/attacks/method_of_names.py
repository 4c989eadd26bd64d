# tries: use a method of the guard around modules
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return jnp._values.items
