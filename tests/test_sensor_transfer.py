"""On real text, sensor ranges barely change if the model, the horizon or the batch doubles.

They change more at the start of a run; `benchmarks.sensors` gives the reason.
"""

import pytest

from benchmarks import sensors
from nanoevolve_jax.policy.spec import Sensors


@pytest.mark.slow
def test_doubling_width_depth_horizon_or_batch_moves_no_sensor_by_a_quarter(tmp_path):
    telemetry = {
        name: sensors.measure(changes, str(tmp_path)) for name, changes in sensors.VARIANTS.items()
    }
    for part, limit in (((sensors.START, 1.0), 0.25), ((sensors.SKIP, sensors.START), 0.35)):
        ranges = {name: sensors.ranges_of(columns, *part) for name, columns in telemetry.items()}
        for variant, measured in ranges.items():
            for name in Sensors._fields:
                moved = sensors.shift(ranges["base"][name], measured[name])
                assert moved < limit, (part, variant, name, moved)
    whole = sensors.ranges_of(telemetry["base"], sensors.SKIP)
    for name, (low, high) in whole.items():
        assert high - low > 0.1, name  # every sensor moves during training
