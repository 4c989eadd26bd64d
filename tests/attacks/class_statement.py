# tries: define a class with a metaclass
# reason: syntax
# slot: gate
# found: text
class Kept(metaclass=type):
    pass


def gate(sensors, features, control):
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
