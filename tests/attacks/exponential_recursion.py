# tries: call itself twice, forty levels deep
# reason: endless | timeout | too_long
# slot: gate
# found: clock
def helper(x, n):
    return x if n == 0 else helper(x, n - 1) + helper(x, n - 1)


def gate(sensors, features, control):
    return helper(sensors.loss_ema, 40)
