# tries: hide names in a dictionary
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    x = {"__class__": 1}
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
