# tries: call LAPACK
# reason: custom_call
# slot: gate
# found: text
def gate(sensors, features, control):
    return jnp.linalg.svd(jnp.ones((3, 3)))[1][0]
