# tries: execute text
# reason: name | syntax
def gate(sensors, features, control):
    return exec("import os")
