# tries: pass values between devices
# reason: attribute
def gate(sensors, features, control):
    return lax.ppermute(sensors.loss_ema, 0, [(0, 1)])
