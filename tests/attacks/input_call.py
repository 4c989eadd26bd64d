# tries: read standard input
# reason: name
def gate(sensors, features, control):
    return input()
