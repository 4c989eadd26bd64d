# tries: start from object
# reason: name
# slot: gate
# found: text
def gate(sensors, features, control):
    return object()
