# tries: sum over all lanes
# reason: attribute
def gate(sensors, features, control):
    return lax.psum(sensors.loss_ema, 0)
