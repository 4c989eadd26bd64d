# tries: give one result for three
# reason: shape
# slot: direction
# found: computation
def direction(gradient, momentum, second_moment, parameter, knobs):
    return gradient
