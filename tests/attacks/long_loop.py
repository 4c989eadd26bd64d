# tries: loop a thousand million times on the device
# reason: cost
# slot: gate
# found: computation
def gate(sensors, features, control):
    return lax.fori_loop(0, 10**9, lambda i, x: jnp.sin(x), sensors.loss_ema)
