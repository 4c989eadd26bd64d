# tries: compute an integer of 10 GB
# reason: endless | timeout | memory | trace
# slot: gate
# found: computation
def gate(sensors, features, control):
    return (1 << 10 ** 11) * sensors.loss_ema
