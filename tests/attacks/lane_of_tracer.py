# tries: read the batch behind a traced value
# reason: attribute
def gate(sensors, features, control):
    return sensors.loss_ema.val
