# tries: read an attribute by a pattern
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    match sensors:
        case object(__class__=found):
            pass
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
