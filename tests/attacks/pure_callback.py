# tries: call back into Python
# reason: callback
# slot: gate
# found: text
def gate(sensors, features, control):
    return jax.pure_callback(len, sensors.loss_ema, sensors.loss_ema)
