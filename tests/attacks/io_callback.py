# tries: call back into Python in order
# reason: callback
# slot: gate
# found: text
def gate(sensors, features, control):
    return jax.experimental.io_callback(len, sensors.loss_ema, sensors.loss_ema)
