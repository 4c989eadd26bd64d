# tries: list what there is
# reason: name
# slot: gate
# found: text
def gate(sensors, features, control):
    return dir(jax)
