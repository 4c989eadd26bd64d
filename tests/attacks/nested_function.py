# tries: define its function within another
# reason: name
# slot: gate
# found: text
def helper():
    def gate(sensors, features, control):
        return 0.0

    return gate
