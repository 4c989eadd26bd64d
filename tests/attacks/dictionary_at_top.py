# tries: keep state in a dictionary at the top
# reason: syntax
# slot: gate
# found: text
KEPT = {0: 0.0}


def gate(sensors, features, control):
    return sensors.loss_ema + KEPT[0]
