# tries: set an attribute by a call
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    return setattr(jnp, "tanh", lax.sin)
