# tries: double an array forty times
# reason: memory | cost | trace | too_long
# slot: gate
# found: computation
def gate(sensors, features, control):
    x = jnp.ones((2,)) * sensors.loss_ema
    for i in range(40):
        x = jnp.concatenate([x, x])
    return jnp.sum(x)
