"""The levels of a win: a candidate misses each one if a single requirement fails."""

import math

import numpy as np
import pytest
from scipy import stats

from nanoevolve_jax.evidence.levels import (
    CHEAPER_P,
    Ladder,
    level_of,
    lower_bound,
    pooled,
    required_seeds,
)

GATES = np.tile(np.linspace(0.2, 0.8, 30), (8, 1))
GAINS = 0.02 + np.linspace(-0.004, 0.004, 8)
FULL = Ladder(
    panel_auc=0.95,
    repeat_difference=0.0,
    gates=GATES,
    actuators={"update_multiplier": [1.1, 1.0, 0.9], "orthogonal_mix": [1.0, 1.0, 1.0]},
    no_win=None,
    cells={"lr x0.5": GAINS, "lr x2": GAINS, "horizon x0.5": GAINS, "horizon x2": GAINS},
    sigma=0.01,
    cheaper=np.tile(GAINS, 4),
    wider=GAINS,
    export_passes=True,
    replay_passes=True,
)
# Four cells with the same eight seeds provide no more evidence than the seeds themselves.
ALIKE = 0.004 + 0.01 * stats.norm.ppf((np.arange(8) + 0.5) / 8)

# Each row is a change to a perfect record, the level that remains, and a part of the reason.
FALLS = [
    ({"panel_auc": None}, 0, "no calibration"),
    ({"panel_auc": 0.89}, 0, "0.890"),
    ({"repeat_difference": 1e-9}, 0, "repeated run"),
    ({"gates": None}, 1, "not recorded"),
    ({"gates": np.vstack([GATES[:7], np.full((1, 30), math.nan)])}, 1, "a run failed"),
    ({"gates": np.vstack([GATES[:6], GATES[:2, ::-1]])}, 1, "same way"),
    ({"gates": 0.5 + 0.1 * (GATES - 0.5)}, 1, "gate moves by"),
    ({"actuators": {"update_multiplier": [1.0, 1.0, 1.02]}}, 1, "no actuator"),
    ({"actuators": {}}, 1, "no actuator"),
    ({"no_win": "it is not confirmed"}, 2, "not confirmed"),
    ({"cells": None}, 3, "not tried"),
    ({"cells": FULL.cells | {"lr x2": np.full(8, -0.0051)}}, 3, "lr x2"),
    ({"cells": FULL.cells | {"lr x2": np.append(GAINS[:7], math.nan)}}, 3, "died at lr x2"),
    ({"cells": {"lr x2": np.linspace(-0.02, 0.021, 8)}}, 3, "lower bound"),
    ({"cells": dict.fromkeys(FULL.cells, ALIKE)}, 3, "lower bound"),
    ({"cheaper": None}, 4, "not tried"),
    ({"cheaper": np.linspace(-0.02, 0.03, 8)}, 4, "95 %"),
    ({"wider": np.linspace(-0.02, 0.021, 8)}, 4, "wider"),
    ({"export_passes": None}, 4, "export"),
    ({"replay_passes": False}, 4, "replay"),
]


def test_a_perfect_record_reaches_the_top():
    assert level_of(FULL) == (5, None, False)


@pytest.mark.parametrize(("change", "level", "reason"), FALLS)
def test_each_rung_needs_its_own_evidence_and_all_below(change, level, reason):
    reached = level_of(FULL._replace(**change))
    assert reached.level == level
    assert reason in reached.missing


@pytest.mark.parametrize(("shift", "level"), [(0.09, 1), (0.11, 5)])
def test_a_gate_must_move_by_a_tenth(shift, level):
    """On a straight line, the first third's mean minus the last third's is 2/3 of the fall."""
    gates = np.tile(np.linspace(0.5, 0.5 - 1.5 * shift, 3001), (8, 1))
    assert level_of(FULL._replace(gates=gates)).level == level


@pytest.mark.parametrize(("p", "level"), [(0.002, 4), (0.0009, 5)])
def test_less_compute_must_win_at_one_in_a_thousand(p, level):
    noise = stats.norm.ppf((np.arange(8) + 0.5) / 8)
    noise /= noise.std(ddof=1)
    cheaper = stats.t.isf(p, 7) / math.sqrt(8) + noise
    assert level_of(FULL._replace(cheaper=cheaper)).level == level


def test_seven_seeds_of_eight_are_enough_to_agree():
    assert level_of(FULL._replace(gates=np.vstack([GATES[:7], GATES[:1, ::-1]]))).level == 5


def test_a_static_policy_skips_the_second_rung_and_says_so():
    still = FULL._replace(static=True, gates=None, actuators=None)
    assert level_of(still) == (5, None, True)
    assert level_of(still._replace(no_win="it is not confirmed")).level == 1


def test_the_lower_bound_lies_below_the_mean_in_95_percent_of_samples():
    rng = np.random.default_rng(0)
    below = [lower_bound(sample) < 0.3 for sample in rng.normal(0.3, 1, (1000, 8))]
    assert np.mean(below) == pytest.approx(0.95, abs=0.02)
    assert lower_bound([0.1, math.nan]) == -math.inf


def test_the_pooled_bound_lies_below_the_mean_in_95_percent_of_samples_though_cells_share_seeds():
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 1, (1000, 1, 8)) + rng.normal(0, 0.3, (1000, 4, 8))
    below = [lower_bound(pooled(dict(enumerate(cells)))) < 0 for cells in shared]
    assert np.mean(below) == pytest.approx(0.95, abs=0.02)


def test_required_seeds_have_the_power_they_promise():
    n = required_seeds(1.0, 1.0)
    samples = np.random.default_rng(0).normal(1.0, 1.0, (4000, n))
    t = samples.mean(1) / (samples.std(1, ddof=1) / math.sqrt(n))
    assert np.mean(stats.t.sf(t, n - 1) < CHEAPER_P) == pytest.approx(0.8, abs=0.06)
    assert required_seeds(0.5, 1.0) > n > required_seeds(2.0, 1.0)
    assert required_seeds(-1.0, 1.0) == 64
