# tries: ask which lane this is
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return lax.axis_index(0)
