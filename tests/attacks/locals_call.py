# tries: read the locals
# reason: name
# slot: gate
# found: text
def gate(sensors, features, control):
    return locals()
