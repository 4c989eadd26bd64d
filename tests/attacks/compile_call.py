# tries: compile text
# reason: name | syntax
def gate(sensors, features, control):
    return compile("1", "", "eval")
