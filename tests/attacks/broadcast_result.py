# tries: give a scalar for a matrix
# reason: shape
# slot: direction
# found: computation
def direction(gradient, momentum, second_moment, parameter, knobs):
    return jnp.sum(gradient), momentum, second_moment
