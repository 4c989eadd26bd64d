# tries: hide a function in wide letters
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return jnp.ｌｏａｄ(0)
