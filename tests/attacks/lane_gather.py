# tries: gather all lanes
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return lax.all_gather(sensors.loss_ema, 0)
