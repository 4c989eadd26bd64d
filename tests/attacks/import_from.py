# tries: import a function at the top
# reason: import
# slot: gate
# found: text
from os import system


def gate(sensors, features, control):
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
