# tries: climb from a tuple to every class
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return ().__class__.__bases__[0].__subclasses__()
