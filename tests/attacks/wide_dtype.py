# tries: ask for float64
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return jnp.float64(sensors.loss_ema)
