# tries: fill memory by a nested comprehension
# reason: endless | memory | timeout | trace
# slot: gate
# found: clock
def gate(sensors, features, control):
    return len([[[k for k in range(9999)] for j in range(9999)] for i in range(9999)]) * 1.0
