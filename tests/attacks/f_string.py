# tries: run code in an f-string
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    return f"{sensors!r:{control}}"
