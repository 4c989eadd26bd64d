# tries: fill memory by a nested comprehension
# reason: endless | memory | timeout | trace
def gate(sensors, features, control):
    return len([[[k for k in range(9999)] for j in range(9999)] for i in range(9999)]) * 1.0
