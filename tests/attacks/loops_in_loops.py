# tries: nest loops whose counts multiply
# reason: cost
# slot: gate
# found: computation
def gate(sensors, features, control):
    def step(i, x):
        return lax.fori_loop(0, 9999, lambda j, y: lax.fori_loop(0, 9999, lambda k, z: jnp.sin(z), y), x)

    return lax.fori_loop(0, 9999, step, sensors.loss_ema)
