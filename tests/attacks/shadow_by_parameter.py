# tries: name a parameter as a module
# reason: name
# slot: gate
# found: text
def helper(jax):
    return jax


def gate(sensors, features, control):
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
