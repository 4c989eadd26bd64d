# tries: read a function's globals
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return gate.__globals__
