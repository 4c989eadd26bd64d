# tries: read the locals
# reason: name
def gate(sensors, features, control):
    return locals()
