# tries: be a generator
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    yield sensors.loss_ema
