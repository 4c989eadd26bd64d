# tries: delete a name that others use
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    del jnp
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
