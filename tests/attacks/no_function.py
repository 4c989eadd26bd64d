# tries: define nothing
# reason: name
# slot: gate
# found: text
LOSS = 1.0
