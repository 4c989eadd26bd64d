# tries: import a function at the top
# reason: import
from os import system


def gate(sensors, features, control):
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
