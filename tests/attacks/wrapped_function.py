# tries: find the module behind a function of JAX
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return jnp.tanh.__wrapped__.__globals__
