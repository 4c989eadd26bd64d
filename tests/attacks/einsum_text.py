# tries: carry text into a library
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    return jnp.einsum("i->", features)
