# tries: execute text
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    return exec("import os")
