# tries: send data to the host
# reason: callback | attribute
def gate(sensors, features, control):
    return lax.outfeed(0, sensors.loss_ema)
