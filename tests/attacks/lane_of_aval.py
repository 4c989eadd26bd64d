# tries: read the trace behind a traced value
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return sensors.loss_ema._trace.main
