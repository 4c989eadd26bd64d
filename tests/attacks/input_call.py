# tries: read standard input
# reason: name
# slot: gate
# found: text
def gate(sensors, features, control):
    return input()
