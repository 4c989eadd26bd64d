# tries: make a class by a call
# reason: name
def gate(sensors, features, control):
    return type(sensors)
