# tries: change a named tuple by its own method
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return sensors._replace(loss_ema=0.0)
