# tries: draw random numbers
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return jax.random.normal(jax.random.key(0))
