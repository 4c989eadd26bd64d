# tries: hide a function behind a derivative
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return jax.custom_jvp(len)(sensors.loss_ema)
