# tries: import where it is traced
# reason: import
# slot: gate
# found: text
def gate(sensors, features, control):
    import socket
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
