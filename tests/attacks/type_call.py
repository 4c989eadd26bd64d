# tries: make a class by a call
# reason: name
# slot: gate
# found: text
def gate(sensors, features, control):
    return type(sensors)
