"""When runs that were made again say what they said before."""

import math

import numpy as np
import pytest

from nanoevolve_jax.replay import agrees

BEFORE = np.array([[2.00, 2.01, 2.02], [1.95, 1.97, 1.99]])
SHIFTED = BEFORE + 0.1  # other text or device, the same gains
FAILED = BEFORE.copy()
FAILED[:, 1] = math.nan


@pytest.mark.parametrize(
    ("before", "found", "limit", "expected"),
    [
        (BEFORE, BEFORE, 0.0, True),
        (BEFORE, BEFORE + 1e-9, 0.0, False),
        (FAILED, FAILED, 0.0, True),
        (BEFORE, SHIFTED, 0.001, True),
        (BEFORE, BEFORE + [[0.002], [0.0]], 0.001, False),
        (FAILED, FAILED + 0.1, 0.001, True),  # both failed both times
        (FAILED, BEFORE, 0.001, False),
        (BEFORE, FAILED, 0.001, False),
    ],
)
def test_gains_agree_within_the_limit_and_the_same_runs_failed(before, found, limit, expected):
    assert agrees(before, found, limit) == expected
