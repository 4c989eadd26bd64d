# tries: start from super
# reason: name
# slot: gate
# found: text
def gate(sensors, features, control):
    return super()
