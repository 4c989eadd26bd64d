# tries: replace a function's code
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return gate.__code__.replace(co_consts=())
