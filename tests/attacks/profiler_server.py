# tries: open a port
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return jax.profiler.start_server(9999)
