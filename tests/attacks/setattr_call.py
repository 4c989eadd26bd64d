# tries: set an attribute by a call
# reason: name | syntax
def gate(sensors, features, control):
    return setattr(jnp, "tanh", lax.sin)
