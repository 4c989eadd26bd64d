# tries: start from super
# reason: name
def gate(sensors, features, control):
    return super()
