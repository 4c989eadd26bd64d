# tries: keep a value by += on a global list
# reason: syntax
# slot: gate
# found: text
KEPT = [0.0]


def gate(sensors, features, control):
    KEPT += [1.0]
    return sensors.loss_ema + len(KEPT)
