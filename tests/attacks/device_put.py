# tries: move data to another device
# reason: callback | attribute
def gate(sensors, features, control):
    return jax.device_put(sensors.loss_ema)
