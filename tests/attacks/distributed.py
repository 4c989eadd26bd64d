# tries: connect to a coordinator
# reason: attribute
def gate(sensors, features, control):
    return jax.distributed.initialize(0)
