# tries: loop for ever on the device
# reason: unbounded_loop
# slot: gate
# found: text
def gate(sensors, features, control):
    return lax.while_loop(lambda x: x > -1.0, lambda x: x + 1.0, sensors.loss_ema)
