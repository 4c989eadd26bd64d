# tries: run code in an f-string
# reason: syntax
def gate(sensors, features, control):
    return f"{sensors!r:{control}}"
