# tries: make a number of Python's out of what is traced
# reason: trace
# slot: gate
# found: computation
def gate(sensors, features, control):
    return float(sensors.loss_ema)
