# tries: take one more element of an iterator in every call
# reason: syntax
# slot: gate
# found: text
KEPT = iter((1.0, -1.0))


def gate(sensors, features, control):
    for sign in KEPT:
        return sign * sensors.loss_ema
    return sensors.loss_ema
