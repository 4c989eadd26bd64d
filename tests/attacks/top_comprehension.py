# tries: compute when the source is loaded
# reason: syntax
# slot: gate
# found: text
TABLE = [i for i in range(10000)]


def gate(sensors, features, control):
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
