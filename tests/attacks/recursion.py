# tries: call itself without end
# reason: trace | endless
# slot: gate
# found: computation
def helper(x):
    return helper(x) + 1.0


def gate(sensors, features, control):
    return helper(sensors.loss_ema)
