# tries: iterate a thousand million times
# reason: endless
# slot: gate
# found: computation
def gate(sensors, features, control):
    return sum(range(10**9)) * sensors.loss_ema
