# tries: divide by the norm of a gradient that may be 0
# reason: non_finite
# slot: direction
# found: computation
def direction(gradient, momentum, second_moment, parameter, knobs):
    return gradient / jnp.sqrt(jnp.sum(gradient * gradient)), momentum, second_moment
