# tries: put something else in the place of jnp
# reason: name
# slot: gate
# found: text
def gate(sensors, features, control):
    jnp = 3.0
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
