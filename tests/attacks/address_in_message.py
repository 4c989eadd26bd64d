# tries: have the memory address of an object in the refusal
# reason: trace
# slot: gate
# found: computation
def gate(sensors, features, control):
    t = (sensors.loss_ema,)
    for i in range(10000):
        t = (t,)
        for j in range(20):
            t = (t,)
    return t
