def blend(gate, low, high):
    return low + gate * (high - low)


def actuate(gate, poles):
    low, high = poles.aggressive, poles.conservative
    return (
        blend(gate, low.update_multiplier, high.update_multiplier),
        blend(gate, low.trust_ratio_mix, high.trust_ratio_mix),
        blend(gate, low.clip_threshold, high.clip_threshold),
        blend(gate, low.second_moment_beta, high.second_moment_beta),
        blend(gate, low.orthogonal_mix, high.orthogonal_mix),
    )
