# tries: hide a value in a lambda's default
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return (lambda x=gate.__globals__: x)()
