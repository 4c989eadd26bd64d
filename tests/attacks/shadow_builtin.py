# tries: define a builtin anew
# reason: name
# slot: gate
# found: text
def len(x):
    return 3


def gate(sensors, features, control):
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
