# tries: keep state in a mutable default
# reason: syntax
# slot: gate
# found: text
def helper(x, kept=[]):
    kept.append(x)
    return kept[0]


def gate(sensors, features, control):
    return helper(sensors.loss_ema)
