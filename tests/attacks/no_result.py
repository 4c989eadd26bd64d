# tries: give nothing
# reason: shape | dtype
def gate(sensors, features, control):
    return None
