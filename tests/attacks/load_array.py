# tries: read a file by jax.numpy
# reason: attribute | syntax
def gate(sensors, features, control):
    return jnp.load("/etc/passwd")
