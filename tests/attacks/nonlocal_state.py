# tries: keep state in a closure
# reason: syntax
# slot: gate
# found: text
def gate(sensors, features, control):
    kept = 0.0

    def count():
        nonlocal kept
        kept = sensors.loss_ema
        return kept

    return count()
