# tries: count calls in an attribute of a function
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    gate.size = 1.0
    return gate.size * sensors.loss_ema
