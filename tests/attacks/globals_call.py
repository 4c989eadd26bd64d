# tries: read the globals
# reason: name
# slot: gate
# found: text
def gate(sensors, features, control):
    return globals()
