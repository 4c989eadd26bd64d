# tries: hide a function in wide letters
# reason: attribute
def gate(sensors, features, control):
    return jnp.ｌｏａｄ(0)
