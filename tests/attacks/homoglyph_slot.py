# tries: name the function with a Cyrillic letter
# reason: name
def gаte(sensors, features, control):
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
