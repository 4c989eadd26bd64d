# tries: reach a private part of JAX
# reason: attribute
def gate(sensors, features, control):
    return jax._src.core.eval_context()
