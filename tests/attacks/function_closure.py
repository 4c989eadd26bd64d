# tries: read a function's closure
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return (lambda: control).__closure__[0].cell_contents
