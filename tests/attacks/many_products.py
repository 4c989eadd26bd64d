# tries: multiply matrices a thousand times
# reason: cost
# slot: direction
# found: computation
def direction(gradient, momentum, second_moment, parameter, knobs):
    x = gradient
    for i in range(500):
        x = x @ x.T @ x
    return x, momentum, second_moment
