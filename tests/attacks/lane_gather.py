# tries: gather all lanes
# reason: attribute
def gate(sensors, features, control):
    return lax.all_gather(sensors.loss_ema, 0)
