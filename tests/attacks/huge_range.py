# tries: iterate a thousand million times
# reason: endless
def gate(sensors, features, control):
    return sum(range(10**9)) * sensors.loss_ema
