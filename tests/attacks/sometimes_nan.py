# tries: give NaN where a sensor is exactly 0
# reason: non_finite
# slot: gate
# found: computation
def gate(sensors, features, control):
    return jnp.where(sensors.loss_ema == 0.0, jnp.inf - jnp.inf, 0.5)
