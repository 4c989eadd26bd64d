# tries: depend on an object's address
# reason: name
# slot: gate
# found: text
def gate(sensors, features, control):
    return id(sensors) * 1.0
