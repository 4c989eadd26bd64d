# tries: turn after 400 calls, counted in a default
# reason: syntax
# slot: direction
# found: text
def count(kept=[]):
    kept += [0]
    return len(kept)


def direction(gradient, momentum, second_moment, parameter, knobs):
    if count() > 400:
        return -gradient, momentum, second_moment
    return gradient, momentum, second_moment
