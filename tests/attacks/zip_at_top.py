# tries: use up a zip that is made once
# reason: syntax
# slot: gate
# found: text
KEPT = zip((1.0, -1.0), (1.0, 2.0))


def gate(sensors, features, control):
    return sum(x * y for x, y in KEPT) + sensors.loss_ema
