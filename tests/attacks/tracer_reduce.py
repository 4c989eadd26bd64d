# tries: serialise an argument
# reason: attribute
def gate(sensors, features, control):
    return sensors.__reduce__()
