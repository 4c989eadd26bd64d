# tries: map a Python function
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return jnp.vectorize(len)(sensors.loss_ema)
