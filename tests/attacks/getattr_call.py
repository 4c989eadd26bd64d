# tries: get an attribute by a name that is put together
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    return getattr(jnp, "lo" + "ad")
