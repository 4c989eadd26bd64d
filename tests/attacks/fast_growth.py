# tries: square an integer forty times
# reason: endless | timeout | memory | trace
# slot: gate
# found: clock
def gate(sensors, features, control):
    x = 3
    for i in range(60):
        x = x * x
    return x * sensors.loss_ema
