# tries: import where it is traced
# reason: import
def gate(sensors, features, control):
    import socket
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
