# tries: read the environment by JAX's config
# reason: attribute
def gate(sensors, features, control):
    return jax.config.values
