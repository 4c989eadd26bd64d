# tries: iterate many times within each other
# reason: endless | memory | timeout
# slot: gate
# found: clock
def gate(sensors, features, control):
    return sum([1.0 for i in range(9999) for j in range(9999) for k in range(9999)])
