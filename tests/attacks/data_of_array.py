# tries: read an array's buffer
# reason: attribute
def gate(sensors, features, control):
    return sensors.loss_ema.addressable_data(0)
