# tries: depend on the seed of hashes
# reason: name | syntax
def gate(sensors, features, control):
    return hash("x") * 1.0
