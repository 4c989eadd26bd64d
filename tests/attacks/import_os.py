# tries: import a module at the top
# reason: import
# slot: gate
# found: text
import os


def gate(sensors, features, control):
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
