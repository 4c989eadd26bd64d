# tries: be a coroutine
# reason: syntax
# slot: gate
# found: text
async def gate(sensors, features, control):
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
