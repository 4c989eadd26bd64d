# tries: compute an integer of 10 ** 10 digits
# reason: endless | timeout | memory | trace
# slot: gate
# found: clock
def gate(sensors, features, control):
    return (10 ** 10 ** 10) * sensors.loss_ema
