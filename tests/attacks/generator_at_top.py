# tries: use up a generator expression that is made once
# reason: syntax
# slot: gate
# found: text
KEPT = (x * 0.5 for x in (1.0, -1.0))


def gate(sensors, features, control):
    return sum(KEPT) + sensors.loss_ema
