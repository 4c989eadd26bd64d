# tries: read the environment by JAX's config
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return jax.config.values
