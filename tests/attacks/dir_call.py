# tries: list what there is
# reason: name
def gate(sensors, features, control):
    return dir(jax)
