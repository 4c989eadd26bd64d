# tries: count calls in the default of a keyword
# reason: syntax
# slot: gate
# found: text
def count(*, kept=[]):
    kept += [0]
    return len(kept)


def gate(sensors, features, control):
    return sensors.loss_ema * count()
