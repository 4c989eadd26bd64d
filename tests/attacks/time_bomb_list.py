# tries: turn after thirty calls, counted in a list under another name
# reason: syntax
# slot: gate
# found: text
KEPT = [0.0]


def gate(sensors, features, control):
    kept = KEPT
    kept += [1.0]
    if len(kept) > 30:
        return 1.0 - 0.0 * sensors.loss_ema
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
