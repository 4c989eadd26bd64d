# tries: scan over a million rows
# reason: cost
# slot: direction
# found: computation
def direction(gradient, momentum, second_moment, parameter, knobs):
    rows = jnp.ones((1000000, 1))
    last, _ = lax.scan(lambda c, r: (jnp.tanh(c) + r[0], None), gradient, rows)
    return last, momentum, second_moment
