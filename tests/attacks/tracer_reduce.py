# tries: serialise an argument
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return sensors.__reduce__()
