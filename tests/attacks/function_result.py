# tries: give a function
# reason: dtype | shape | trace
# slot: gate
# found: computation
def gate(sensors, features, control):
    return lambda x: x
