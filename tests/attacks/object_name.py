# tries: start from object
# reason: name
def gate(sensors, features, control):
    return object()
