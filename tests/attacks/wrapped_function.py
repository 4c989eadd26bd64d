# tries: find the module behind a function of JAX
# reason: attribute
def gate(sensors, features, control):
    return jnp.tanh.__wrapped__.__globals__
