# tries: reach globals by a generator's frame
# reason: attribute
# slot: gate
# found: text
def gate(sensors, features, control):
    return (x for x in features).gi_frame.f_back.f_globals
