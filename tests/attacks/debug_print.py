# tries: print while it runs
# reason: callback
# slot: gate
# found: text
def gate(sensors, features, control):
    x = jax.debug.print(sensors.loss_ema)
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
