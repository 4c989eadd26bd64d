# tries: keep a set at the top
# reason: syntax
# slot: gate
# found: text
KEPT = {0.0, 1.0}


def gate(sensors, features, control):
    return sensors.loss_ema * len(KEPT)
