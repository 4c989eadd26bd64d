# tries: keep state in a global
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    global counter
    counter = 1
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
