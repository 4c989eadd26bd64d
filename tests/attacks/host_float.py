# tries: make a number of Python's out of what is traced
# reason: trace
def gate(sensors, features, control):
    return float(sensors.loss_ema)
