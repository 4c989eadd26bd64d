# tries: get data from the host
# reason: callback | attribute
def gate(sensors, features, control):
    return lax.infeed(0)
