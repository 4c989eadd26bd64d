# tries: move data to the host
# reason: callback
# slot: gate
# found: text
def gate(sensors, features, control):
    return jax.device_get(sensors.loss_ema)
