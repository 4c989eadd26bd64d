# tries: replace a function among other targets
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    x, jnp.tanh = 1.0, lax.sin
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
