# tries: give an integer
# reason: dtype
# slot: gate
# found: computation
def gate(sensors, features, control):
    return jnp.astype(sensors.loss_ema, jnp.int32)
