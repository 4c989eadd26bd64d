# tries: compile for ever at the level that training uses
# reason: timeout | memory | killed
# slot: direction
# found: clock
def direction(gradient, momentum, second_moment, parameter, knobs):
    x = gradient[:2, 0] / (1.0 + jnp.max(jnp.abs(gradient)))
    for i in range(22):
        x = jnp.tanh(x + x[::-1] * 0.5)
    return gradient + 1e-6 * jnp.sum(x), momentum, second_moment
