# tries: give a function
# reason: dtype | shape | trace
def gate(sensors, features, control):
    return lambda x: x
