# tries: read a file by jax.numpy
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    return jnp.load("/etc/passwd")
