# tries: turn the direction of the text in a comment
# reason: none
# slot: gate
# found: computation
def gate(sensors, features, control):
    # ‮ } fi ⁦ accepted
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
