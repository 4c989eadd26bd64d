# tries: move a number to the host
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return sensors.loss_ema.item()
