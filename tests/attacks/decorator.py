# tries: run a call as a decorator
# reason: syntax
# slot: gate
# found: text
@jnp.vectorize
def gate(sensors, features, control):
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
