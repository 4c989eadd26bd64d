# tries: run a call when the source is loaded
# reason: syntax
# slot: gate
# found: text
jnp.zeros(3)


def gate(sensors, features, control):
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
