# tries: overflow on large gradients
# reason: non_finite
# slot: direction
# found: computation
def direction(gradient, momentum, second_moment, parameter, knobs):
    return jnp.exp(jnp.abs(gradient) * 1e6), momentum, second_moment
