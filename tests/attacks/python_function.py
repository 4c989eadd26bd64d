# tries: make a Python function a ufunc
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return jnp.frompyfunc(len, 1, 1)(sensors.loss_ema)
