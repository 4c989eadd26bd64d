# tries: give another float
# reason: dtype
# slot: direction
# found: computation
def direction(gradient, momentum, second_moment, parameter, knobs):
    return gradient.astype(jnp.bfloat16), momentum, second_moment
