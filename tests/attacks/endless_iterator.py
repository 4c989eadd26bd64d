# tries: iterate without end
# reason: name
def gate(sensors, features, control):
    return sum(iter(int, 1))
