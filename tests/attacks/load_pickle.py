# tries: load a pickle
# reason: attribute | syntax
def gate(sensors, features, control):
    return jnp.load("code.pkl", allow_pickle=True)
