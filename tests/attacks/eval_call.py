# tries: evaluate text
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    return eval("1")
