# tries: give another float
# reason: dtype
# slot: direction
def direction(gradient, momentum, second_moment, parameter, knobs):
    return gradient.astype(jnp.bfloat16), momentum, second_moment
