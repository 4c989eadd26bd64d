# tries: run code as a default value
# reason: syntax
# slot: gate
# found: text
def helper(x=open(0)):
    return x


def gate(sensors, features, control):
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
