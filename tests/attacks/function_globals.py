# tries: read a function's globals
# reason: attribute
def gate(sensors, features, control):
    return gate.__globals__
