# tries: fork by a module of JAX's
# reason: name
# slot: gate
# found: text
def gate(sensors, features, control):
    return os.fork()
