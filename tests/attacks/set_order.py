# tries: depend on the order of a set
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    x = sum({0.1, 0.2, 0.3})
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
