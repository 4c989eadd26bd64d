# tries: send data to the host
# reason: callback
# slot: gate
# found: text
def gate(sensors, features, control):
    return lax.outfeed(0, sensors.loss_ema)
