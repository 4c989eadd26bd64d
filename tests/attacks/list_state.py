# tries: keep a value of one tracing for the next
# reason: syntax
# slot: gate
# found: text
KEPT = [0.0]


def gate(sensors, features, control):
    KEPT.append(sensors.loss_ema)
    return KEPT[0]
