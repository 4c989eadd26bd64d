# tries: write a trace to disk
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    return jax.profiler.start_trace("/tmp/x")
