# tries: name the function with a Cyrillic letter
# reason: name
# slot: gate
# found: text
def gаte(sensors, features, control):
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
