"""Calibration on simulated runs: its measurements, and its error if nothing trains."""

import itertools
import math

import numpy as np
import pytest
from benches import arm, lr_factor, make_bench

from nanoevolve_jax.evidence.calibration import (
    dimensions,
    horizon_slope,
    measure,
    tune_recipe,
)
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.seeds import Stage, stage_seed
from nanoevolve_jax.execution.settings import ConfigError


def noisy(job):
    """Returns a loss that falls with the horizon and depends on seed and spec."""
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
    assert "\n" not in str(error.value)


def test_slope_and_panel_of_a_loss_that_falls_with_the_logarithm_of_the_horizon():
    results = measured(noisy)
    assert results["scale"]["horizon_slope"] == pytest.approx(0.1, abs=0.01)
    for steps, panel in results["panel"]["horizons"].items():
        assert set(panel["bpb"]) == {*results["panel"]["good"], *results["panel"]["bad"]}
        expected = noisy_at(int(steps))
        assert panel["bpb"]["baseline"] == pytest.approx(expected)


def noisy_at(steps):
    """Returns the baseline's losses on the first three noise seeds."""
    bench = make_bench(noisy)
    seeds = [stage_seed(Stage.NOISE, 0, i) for i in range(3)]
    return [noisy(bench.job(arm(), seed, 0, steps)) for seed in seeds]


def test_the_slope_is_what_a_longer_run_gains_and_never_negative():
    falling = {50: 2.5, 100: 2.4, 200: 2.3}
    assert horizon_slope(falling) == pytest.approx(0.1 / math.log(2))
    assert horizon_slope({50: 2.3, 100: 2.4, 200: 2.5}) == 0.0


def test_a_failed_run_of_the_panel_is_null_in_the_document():
    results = measured(fails_if(lambda job: job.candidate.spec.update_multiplier == 4.0))
    assert results["panel"]["horizons"]["100"]["bpb"]["multiplier x4"] == [None] * 3


def test_tuning_where_nothing_trains_ends_in_one_line():
    bench = make_bench(lambda job: math.nan)
    with pytest.raises(EvidenceError, match="all 8 runs of the tuning failed"):
        tune_recipe(bench.config, bench.runs, 8, silent)


def test_tuning_goes_on_where_its_first_runs_fail():
    """Ranges are reviewed after a quarter of the runs, when no run has succeeded yet."""
    bench = make_bench(lambda job: math.nan if len(bench.runs.jobs) <= 2 else noisy(job))
    assert tune_recipe(bench.config, bench.runs, 8, silent)["failed"] == 2


def test_a_shortlist_whose_every_point_fails_once_is_refused():
    bench = make_bench(lambda job: math.nan if bench.runs.of("calibrate: tune_final") else 2.0)
    with pytest.raises(ConfigError, match="must lead to a recipe"):
        tune_recipe(bench.config, bench.runs, 8, silent)


def tuned(bpb_of, budget=24, **changes):
    """Returns the tuning results, the announced extra candidate-steps, and the bench."""
    bench = make_bench(bpb_of, **changes)
    more = []
    results = tune_recipe(bench.config, bench.runs, budget, silent, more.append)
    return results, sum(more), bench


INNER = {  # a recipe in the middle of every range
    "recipe__warmup_fraction": 0.05,
    "recipe__warmdown_fraction": 0.65,
    "recipe__final_lr_fraction": 0.1,
    "recipe__momentum": 0.95,
    "recipe__second_moment_beta": 0.9,
}


def bowl(best):
    """Returns losses with their minimum at a factor on the matrix learning rate."""
    bench = make_bench(noisy, **INNER)

    def bpb_of(job):
        spec, recipe = job.candidate.spec, job.candidate.recipe
        usual = bench.candidate(arm(), job.steps).recipe
        away = math.log2(lr_factor(bench, job) / best) ** 2
        away += math.log2(recipe.weight_decay / usual.weight_decay) ** 2
        away += 10 * (recipe.warmdown_fraction - usual.warmdown_fraction) ** 2
        away += 10 * (spec.momentum - 0.95) ** 2
        return noisy(job) + 0.1 * away

    return bpb_of


def test_tuning_goes_on_beyond_an_edge_at_which_the_best_recipe_lies():
    results, more, bench = tuned(bowl(1e6), **INNER)
    rounds = len(results["widenings"])
    assert 1 <= rounds <= 2 and "before" in results["shortlist"]
    assert results["runs"] == 24 + rounds * 6 == len(bench.runs.of("calibrate: tune"))
    assert more == rounds * (6 + 5 * bench.config.calibrate.seeds) * 100
    before = {d.name: d.high - d.low for d in dimensions(bench.config.recipe.to_dict())[0]}
    for name in itertools.chain(*results["widenings"]):
        low, high = results["ranges"][name]
        assert high - low > before[name]


def test_what_still_lies_at_an_edge_after_the_last_round_is_said():
    lines = []
    bench = make_bench(lambda job: -lr_factor(bench, job), **INNER)  # improves without end
    results = tune_recipe(bench.config, bench.runs, 24, lines.append)
    assert len(results["widenings"]) == 2 and results["at_edge"]
    assert lines[-1].startswith(f"tuning: '{results['chosen']}' still lies at an edge of ")


def test_tuning_ends_where_the_best_recipe_lies_inside_its_ranges():
    def bpb_of(job):  # the default is best by far
        return 1.0 if lr_factor(bench, job) == pytest.approx(1.0) else noisy(job)

    bench = make_bench(bpb_of, **INNER)
    results = tune_recipe(bench.config, bench.runs, 24, silent)
    assert results["chosen"] == "default"
    assert (results["widenings"], results["at_edge"], results["runs"]) == ([], [], 24)
