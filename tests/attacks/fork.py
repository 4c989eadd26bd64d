# tries: fork by a module of JAX's
# reason: attribute | name
def gate(sensors, features, control):
    return os.fork()
