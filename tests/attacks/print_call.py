# tries: print what is traced
# reason: name
# slot: gate
# found: text
def gate(sensors, features, control):
    return print(sensors)
