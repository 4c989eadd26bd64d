# tries: poison the momentum alone
# reason: non_finite
# slot: direction
# found: computation
def direction(gradient, momentum, second_moment, parameter, knobs):
    return gradient, jnp.sqrt(-1.0 - momentum * momentum), second_moment
