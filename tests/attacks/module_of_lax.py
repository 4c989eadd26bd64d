# tries: reach sys through lax
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return lax.sys.modules
