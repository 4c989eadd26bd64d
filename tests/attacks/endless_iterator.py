# tries: iterate without end
# reason: name
# slot: gate
# found: text
def gate(sensors, features, control):
    return sum(iter(int, 1))
