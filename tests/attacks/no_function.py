# tries: define nothing
# reason: name
LOSS = 1.0
