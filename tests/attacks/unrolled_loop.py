# tries: unroll ten thousand steps
# reason: too_long
# slot: gate
# found: computation
def gate(sensors, features, control):
    x = sensors.loss_ema
    for i in range(9999):
        x = jnp.sin(x) + 1.0
    return x
