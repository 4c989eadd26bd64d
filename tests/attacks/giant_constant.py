# tries: carry a matrix of constants
# reason: constant
# slot: direction
# found: computation
def direction(gradient, momentum, second_moment, parameter, knobs):
    x = jnp.array([[i * 0.37 + j * 0.11 for j in range(300)] for i in range(300)])
    return gradient * jnp.sum(jnp.sin(x)), momentum, second_moment
