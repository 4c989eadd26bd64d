# tries: format by an operator
# reason: syntax
def gate(sensors, features, control):
    return "%s" % sensors
