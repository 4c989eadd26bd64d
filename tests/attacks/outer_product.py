# tries: hold the outer product of a matrix with itself
# reason: memory | cost
# slot: direction
# found: computation
def direction(gradient, momentum, second_moment, parameter, knobs):
    x = jnp.reshape(gradient, (-1,))
    y = jnp.sum(jnp.sort(x[:, None] * x[None, :], axis=0))
    return gradient * y, momentum, second_moment
