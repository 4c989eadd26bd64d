# tries: loop for ever in Python
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    while True:
        pass
