# tries: write a trace to disk
# reason: attribute | syntax
def gate(sensors, features, control):
    return jax.profiler.start_trace("/tmp/x")
