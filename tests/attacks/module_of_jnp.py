# tries: reach numpy through jax.numpy
# reason: attribute
def gate(sensors, features, control):
    return jnp.np.zeros(())
