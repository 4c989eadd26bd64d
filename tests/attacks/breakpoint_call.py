# tries: start a debugger
# reason: name
def gate(sensors, features, control):
    return breakpoint()
