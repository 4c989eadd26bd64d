# tries: draw random numbers by lax
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return lax.rng_uniform(0.0, 1.0, ())
