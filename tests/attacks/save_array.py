# tries: write a file by jax.numpy
# reason: attribute | syntax
def gate(sensors, features, control):
    return jnp.save("/tmp/stolen", sensors.loss_ema)
