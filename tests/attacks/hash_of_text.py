# tries: depend on the seed of hashes
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    return hash("x") * 1.0
