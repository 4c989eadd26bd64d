# tries: hide a character of no width in a name
# reason: syntax
def gate(sensors, features, control):
    return sen​sors.loss_ema
