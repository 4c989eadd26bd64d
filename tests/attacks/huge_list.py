# tries: multiply a list to 80 GB
# reason: memory | trace
# slot: gate
# found: computation
def gate(sensors, features, control):
    return len([0.0] * 10 ** 10) * sensors.loss_ema
