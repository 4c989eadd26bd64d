# tries: sum over all lanes
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return lax.psum(sensors.loss_ema, 0)
