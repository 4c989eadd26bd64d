# tries: call back by jax.debug
# reason: callback
# slot: gate
# found: text
def gate(sensors, features, control):
    x = jax.debug.callback(len, sensors.loss_ema)
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
