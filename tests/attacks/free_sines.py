# tries: spend a step's time twenty times over on sines
# reason: cost
# slot: direction
# found: computation
def direction(gradient, momentum, second_moment, parameter, knobs):
    x = gradient / (1.0 + jnp.max(jnp.abs(gradient)))
    for k in range(150):
        x = jnp.sin(x)
    return x, momentum, second_moment
