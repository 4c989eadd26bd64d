# tries: run code in an annotation
# reason: syntax
# slot: gate
# found: text
def gate(sensors: __import__, features, control):
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
