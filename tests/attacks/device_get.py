# tries: move data to the host
# reason: callback | attribute
def gate(sensors, features, control):
    return jax.device_get(sensors.loss_ema)
