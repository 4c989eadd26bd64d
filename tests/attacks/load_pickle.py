# tries: load a pickle
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    return jnp.load("code.pkl", allow_pickle=True)
