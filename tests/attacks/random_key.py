# tries: draw random numbers
# reason: attribute
def gate(sensors, features, control):
    return jax.random.normal(jax.random.key(0))
