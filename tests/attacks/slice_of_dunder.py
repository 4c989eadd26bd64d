# tries: hide a dunder in a subscript
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    return sensors["__class__"]
