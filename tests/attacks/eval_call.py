# tries: evaluate text
# reason: name | syntax
def gate(sensors, features, control):
    return eval("1")
