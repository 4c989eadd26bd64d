# tries: define another slot's function
# reason: name
# slot: gate
# found: text
def actuate(gate, poles):
    return gate
