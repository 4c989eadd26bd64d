# tries: assign inside an expression
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    x = (y := 1.0)
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
