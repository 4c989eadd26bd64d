# tries: use __builtins__ by name
# reason: name | attribute
def gate(sensors, features, control):
    return __builtins__.open
