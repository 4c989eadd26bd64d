# tries: reach globals by a generator's frame
# reason: attribute
def gate(sensors, features, control):
    return (x for x in features).gi_frame.f_back.f_globals
