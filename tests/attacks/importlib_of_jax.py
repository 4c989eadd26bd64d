# tries: reach importlib through JAX
# reason: attribute
def gate(sensors, features, control):
    return jax.importlib.import_module(0)
