# tries: read the trace behind a traced value
# reason: attribute
def gate(sensors, features, control):
    return sensors.loss_ema._trace.main
