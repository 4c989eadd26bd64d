# tries: give the slot's function a further parameter that keeps state
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control, kept=[]):
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
