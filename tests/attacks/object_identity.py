# tries: depend on an object's address
# reason: name
def gate(sensors, features, control):
    return id(sensors) * 1.0
