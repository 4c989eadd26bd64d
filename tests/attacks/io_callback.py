# tries: call back into Python in order
# reason: callback
def gate(sensors, features, control):
    return jax.experimental.io_callback(len, sensors.loss_ema, sensors.loss_ema)
