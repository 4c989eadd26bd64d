# tries: read a file
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    return open("/etc/passwd").read()
