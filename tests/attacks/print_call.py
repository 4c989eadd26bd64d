# tries: print what is traced
# reason: name
def gate(sensors, features, control):
    return print(sensors)
