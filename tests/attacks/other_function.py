# tries: define another slot's function
# reason: name
def actuate(gate, poles):
    return gate
