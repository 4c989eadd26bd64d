# tries: read a module's dictionary
# reason: name
# slot: gate
# found: text
def gate(sensors, features, control):
    return vars(jnp)
