# tries: give NaN always
# reason: non_finite
# slot: gate
# found: computation
def gate(sensors, features, control):
    return jnp.log(-1.0 - jnp.abs(sensors.loss_ema))
