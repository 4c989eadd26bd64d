# tries: read an array's buffer
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return sensors.loss_ema.addressable_data(0)
