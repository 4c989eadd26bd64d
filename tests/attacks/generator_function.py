# tries: be a generator
# reason: syntax
def gate(sensors, features, control):
    yield sensors.loss_ema
