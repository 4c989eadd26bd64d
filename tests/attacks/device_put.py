# tries: move data to another device
# reason: callback
# slot: gate
# found: text
def gate(sensors, features, control):
    return jax.device_put(sensors.loss_ema)
