# tries: assign its function
# reason: name | syntax
gate = lambda sensors, features, control: 0.0
