# tries: write a file by jax.numpy
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    return jnp.save("/tmp/stolen", sensors.loss_ema)
