# tries: use __builtins__ by name
# reason: name
# slot: gate
# found: text
def gate(sensors, features, control):
    return __builtins__.open
