# tries: branch in Python on what is traced
# reason: trace
# slot: gate
# found: computation
def gate(sensors, features, control):
    return sensors.loss_ema if sensors.loss_ema > 0 else 0.0
