# tries: assign its function
# reason: syntax
# slot: gate
# found: text
gate = lambda sensors, features, control: 0.0
