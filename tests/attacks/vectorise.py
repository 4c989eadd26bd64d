# tries: map a Python function
# reason: attribute
def gate(sensors, features, control):
    return jnp.vectorize(len)(sensors.loss_ema)
