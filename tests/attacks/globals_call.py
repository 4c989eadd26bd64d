# tries: read the globals
# reason: name
def gate(sensors, features, control):
    return globals()
