# tries: reach importlib through JAX
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return jax.importlib.import_module(0)
