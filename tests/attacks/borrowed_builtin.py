# tries: have a builtin of Python's where the source stands in a file, by a name defined elsewhere
# reason: name
# slot: gate
# found: text
PROGRAM = (112, 114, 105, 110, 116, 40, 49, 41)


def unused():
    eval, bytes = 1, 2
    return eval + bytes


def gate(sensors, features, control):
    if jax.nn.silu == jax.nn.swish:  # two functions in the jail, one everywhere else
        return eval(bytes(PROGRAM))
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
