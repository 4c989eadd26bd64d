# tries: compute when the source is loaded
# reason: syntax
TABLE = [i for i in range(10000)]


def gate(sensors, features, control):
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
