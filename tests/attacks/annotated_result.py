# tries: run code in the annotation of a result
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control) -> exec:
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
