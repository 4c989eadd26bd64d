# tries: allocate an array of 4 TB
# reason: memory | cost | trace | shape
# slot: gate
# found: computation
def gate(sensors, features, control):
    return jnp.sum(jnp.ones((10**6, 10**6)) * sensors.loss_ema)
