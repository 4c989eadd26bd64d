# tries: pass a module on as a value
# reason: name
# slot: gate
# found: text
def gate(sensors, features, control):
    return helper(jnp)
