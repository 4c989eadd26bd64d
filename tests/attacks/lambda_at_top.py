# tries: keep a list in the default of a lambda at the top
# reason: syntax
# slot: gate
# found: text
count = lambda kept=[]: len(kept)


def gate(sensors, features, control):
    return sensors.loss_ema * count()
