# tries: reach numpy through jax.numpy
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return jnp.np.zeros(())
