# tries: give the transpose
# reason: shape
# slot: direction
# found: computation
def direction(gradient, momentum, second_moment, parameter, knobs):
    return gradient.T, momentum, second_moment
