# tries: hide a dunder in wide letters, which Python reads as plain ones
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return ().__ｃlass__
