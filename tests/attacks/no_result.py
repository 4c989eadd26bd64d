# tries: give nothing
# reason: shape | dtype
# slot: gate
# found: computation
def gate(sensors, features, control):
    return None
