# tries: compile text
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    return compile("1", "", "eval")
