# tries: reach a private part of JAX
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return jax._src.core.eval_context()
