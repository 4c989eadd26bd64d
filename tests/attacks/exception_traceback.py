# tries: reach frames by an exception's traceback
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    try:
        1 / 0
    except ZeroDivisionError as error:
        error.__traceback__.tb_frame.f_globals
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
