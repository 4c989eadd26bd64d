# tries: call __import__
# reason: import
# slot: gate
# found: text
def gate(sensors, features, control):
    return __import__("os").getpid()
