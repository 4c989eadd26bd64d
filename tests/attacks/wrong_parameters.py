# tries: ask for what no gate is given
# reason: name
# slot: gate
# found: text
def gate(sensors, features, control, validation_text):
    return sensors.loss_ema
