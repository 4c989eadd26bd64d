# tries: start a debugger
# reason: name
# slot: gate
# found: text
def gate(sensors, features, control):
    return breakpoint()
