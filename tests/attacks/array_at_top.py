# tries: share an array between calls
# reason: syntax
# slot: gate
# found: text
KEPT = jnp.zeros(3)


def gate(sensors, features, control):
    return sensors.loss_ema + KEPT[0]
