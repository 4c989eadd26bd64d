# tries: call __import__
# reason: import | name | syntax
def gate(sensors, features, control):
    return __import__("os").getpid()
