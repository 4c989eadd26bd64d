# tries: carry a value out in a message
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    raise ValueError(sensors)
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
