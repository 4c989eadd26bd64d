# tries: keep a list for the next call inside a tuple
# reason: syntax
# slot: gate
# found: text
KEPT = (0.0, ([0.0], 1.0))


def gate(sensors, features, control):
    kept = KEPT[1][0]
    kept += [1.0]
    return sensors.loss_ema * len(kept)
