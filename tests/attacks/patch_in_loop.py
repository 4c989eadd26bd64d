# tries: replace a function as the target of a loop
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    for jnp.tanh in (lax.sin, lax.cos):
        pass
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
