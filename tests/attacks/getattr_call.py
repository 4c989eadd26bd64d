# tries: get an attribute by a name that is put together
# reason: name | syntax
def gate(sensors, features, control):
    return getattr(jnp, "lo" + "ad")
