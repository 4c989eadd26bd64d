# tries: replace a function's code
# reason: attribute
def gate(sensors, features, control):
    return gate.__code__.replace(co_consts=())
