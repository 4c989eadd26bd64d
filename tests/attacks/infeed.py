# tries: get data from the host
# reason: callback
# slot: gate
# found: text
def gate(sensors, features, control):
    return lax.infeed(0)
