# tries: pass values between devices
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return lax.ppermute(sensors.loss_ema, 0, [(0, 1)])
