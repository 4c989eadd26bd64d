# tries: hide an import behind another encoding
# reason: syntax
# slot: gate
# found: text
# -*- coding: utf_7 -*-
+AGkAbQBwAG8AcgB0 os


def gate(sensors, features, control):
    return jax.nn.sigmoid(control.sharpness * (control.bias + sensors.loss_ema))
