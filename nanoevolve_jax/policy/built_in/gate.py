# WEIGHTED_SUM stands for the sum over all sensors; `slots.built_in_source` writes it out.
def gate(sensors, features, control):
    weights = control.coefficients
    drive = WEIGHTED_SUM + sum(features)
    return jax.nn.sigmoid(control.sharpness * (control.bias + drive))
