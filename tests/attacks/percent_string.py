# tries: format by an operator
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    return "%s" % sensors
