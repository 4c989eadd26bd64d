# tries: read a file
# reason: name | syntax
def gate(sensors, features, control):
    return open("/etc/passwd").read()
