# tries: replace a function of jax.numpy
# reason: attribute
def gate(sensors, features, control):
    jnp.tanh = lax.sin
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
