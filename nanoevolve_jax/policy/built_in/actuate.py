def blend(gate, low, high):
    return low + gate * (high - low)


# BLENDS stands for one blend per actuator; `slots.built_in_source` writes them out.
def actuate(gate, poles):
    low, high = poles.aggressive, poles.conservative
    return (BLENDS,)
