# tries: import all of a module
# reason: import
# slot: gate
# found: text
from subprocess import *


def gate(sensors, features, control):
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
