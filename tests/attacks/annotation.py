# tries: run code in an annotation
# reason: syntax | import | name
def gate(sensors: __import__, features, control):
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
