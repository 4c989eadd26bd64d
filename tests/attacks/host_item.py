# tries: move a number to the host
# reason: attribute
def gate(sensors, features, control):
    return sensors.loss_ema.item()
