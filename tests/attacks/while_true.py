# tries: loop for ever in Python
# reason: syntax
def gate(sensors, features, control):
    while True:
        pass
