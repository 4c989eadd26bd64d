# tries: open a port
# reason: attribute
def gate(sensors, features, control):
    return jax.profiler.start_server(9999)
