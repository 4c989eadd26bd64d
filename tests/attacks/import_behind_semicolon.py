# tries: hide an import behind a semicolon
# reason: import
# slot: gate
# found: text
def gate(sensors, features, control):
    x = 1; import os; x = 2
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
