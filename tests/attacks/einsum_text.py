# tries: carry text into a library
# reason: syntax
def gate(sensors, features, control):
    return jnp.einsum("i->", features)
