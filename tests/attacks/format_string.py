# tries: climb by the fields of a format string
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    return "{0.__class__.__init__.__globals__}".format(sensors)
