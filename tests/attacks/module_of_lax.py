# tries: reach sys through lax
# reason: attribute
def gate(sensors, features, control):
    return lax.sys.modules
