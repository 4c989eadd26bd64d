# tries: ask which lane this is
# reason: attribute
def gate(sensors, features, control):
    return lax.axis_index(0)
