# tries: replace a function of jax.numpy
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    jnp.tanh = lax.sin
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
