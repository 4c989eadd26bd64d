# tries: import through a module's loader
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return math.__loader__.load_module(0)
