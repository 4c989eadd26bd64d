# tries: carry a value out in an assertion
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    assert sensors.loss_ema, sensors
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
