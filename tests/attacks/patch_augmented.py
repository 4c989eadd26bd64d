# tries: change a constant of jax.numpy
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    jnp.pi += 1.0
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
