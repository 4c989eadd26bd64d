# tries: loop when the source is loaded
# reason: syntax
# slot: gate
# found: text
for i in range(9):
    pass


def gate(sensors, features, control):
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
