# tries: call a function of a library
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return jax.ffi.ffi_call(0, sensors.loss_ema)
