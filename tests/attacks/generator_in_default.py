# tries: use up a generator that is a default
# reason: syntax
# slot: gate
# found: text
def first(kept=(x for x in (1.0, -1.0))):
    for x in kept:
        return x
    return 0.0


def gate(sensors, features, control):
    return first() * sensors.loss_ema
