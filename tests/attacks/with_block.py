# tries: open a file in a with block
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    with open("/etc/passwd") as file:
        file.read()
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
