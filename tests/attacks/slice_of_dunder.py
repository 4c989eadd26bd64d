# tries: hide a dunder in a subscript
# reason: syntax | attribute
def gate(sensors, features, control):
    return sensors["__class__"]
