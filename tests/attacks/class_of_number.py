# tries: climb from a number
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return (1).__class__.__mro__[1].__subclasses__()
