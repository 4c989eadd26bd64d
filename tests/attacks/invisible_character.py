# tries: hide a character of no width in a name
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    return sen​sors.loss_ema
