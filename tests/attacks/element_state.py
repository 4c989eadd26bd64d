# tries: keep a value in an element of a global
# reason: syntax
# slot: gate
# found: text
KEPT = [0.0]


def gate(sensors, features, control):
    KEPT[0] = KEPT[0] + 1.0
    return sensors.loss_ema + KEPT[0]
