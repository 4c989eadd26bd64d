# tries: connect to a coordinator
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return jax.distributed.initialize(0)
