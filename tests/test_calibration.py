"""Calibration on runs that cost nothing: what it measures, and how it ends where none trains."""

import math

import numpy as np
import pytest
from benches import make_bench

from nanoevolve_jax.evidence.calibration import measure, tune_recipe
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.execution.settings import ConfigError


def noisy(job):
    """A loss that falls with the horizon, by seed and spec."""
    rng = np.random.default_rng([job.seed, round(100 * job.candidate.spec.update_multiplier)])
    return 2.0 - 0.1 * math.log(job.steps) + rng.normal(0, 0.01)


def silent(line):
    del line


def measured(bpb_of):
    bench = make_bench(bpb_of)
    return measure(bench.config, bench.runs, bench.config.recipe.to_dict(), silent)


def fails_if(condition):
    return lambda job: math.nan if condition(job) else noisy(job)


FAILURES = {
    "the baseline at its longest": lambda job: job.steps == 200,
    "one seed of the twin": lambda job: (
        job.candidate.spec.update_multiplier == 1.1 and job.seed % 8 == 3
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_noise_of_runs_that_fail_ends_in_one_line(name):
    with pytest.raises(EvidenceError, match="failed") as error:
        measured(fails_if(FAILURES[name]))
    assert "allowed: " in str(error.value) and "\n" not in str(error.value)


def test_tuning_where_nothing_trains_ends_in_one_line():
    bench = make_bench(lambda job: math.nan)
    with pytest.raises(EvidenceError, match="all 8 runs of the tuning failed; allowed: "):
        tune_recipe(bench.config, bench.runs, 8, silent)


def test_tuning_goes_on_where_its_first_runs_fail():
    """Ranges are reviewed after a quarter of the runs, when nothing has trained yet."""
    bench = make_bench(lambda job: math.nan if len(bench.runs.jobs) <= 2 else noisy(job))
    assert tune_recipe(bench.config, bench.runs, 8, silent)["failed"] == 2


def test_a_shortlist_whose_every_point_fails_once_is_refused():
    bench = make_bench(lambda job: math.nan if bench.runs.of("calibrate: tune_final") else 2.0)
    with pytest.raises(ConfigError, match="leads to no recipe"):
        tune_recipe(bench.config, bench.runs, 8, silent)
