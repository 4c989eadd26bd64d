"""Where a win is tried: learning rates, horizons, less compute and more width, on whose seeds."""

import numpy as np
import pytest
from benches import arm, lr_factor, make_bench, make_slot, make_trial

from nanoevolve_jax.evidence.transfer import run_cells, run_cheaper, run_wider
from nanoevolve_jax.policy.spec import ANNEALING

POLICY, BASELINE = arm("candidate", ANNEALING), arm("nanochat")


def gains_a_tenth(job):
    enabled = job.candidate.spec.control.enabled
    return 2.0 - 0.1 * enabled + np.random.default_rng([job.seed, enabled]).normal(0, 0.001)


def make():
    return make_bench(gains_a_tenth)


def split(jobs):
    """Jobs of the baseline and of the policy."""
    policy = [job for job in jobs if job.candidate.spec.control.enabled]
    return [job for job in jobs if job not in policy], policy


def test_cells_halve_and_double_the_learning_rate_and_the_horizon_of_both_arms():
    bench = make()
    cells = run_cells(bench, POLICY._replace(lr_factor=1.4), BASELINE, make_slot())
    assert list(cells) == ["lr x0.5", "lr x2", "horizon x0.5", "horizon x2"]
    baseline, policy = split(bench.runs.of("transfer: learning rate and horizon"))
    conditions = [(0.5, 200), (2.0, 200), (1.0, 100), (1.0, 400)]
    for jobs, own in ((baseline, 1.0), (policy, 1.4)):
        for i, (factor, steps) in enumerate(conditions):
            for job in jobs[8 * i : 8 * i + 8]:
                assert job.steps == steps
                assert lr_factor(bench, job) == pytest.approx(own * factor)
    for cell in cells.values():
        assert cell.gains == pytest.approx([0.1] * 8, abs=0.01)


@pytest.mark.parametrize(("cost_ratio", "steps"), [(1.0, 190), (1.25, 152), (0.95, 200)])
def test_the_winner_gets_95_percent_of_the_baselines_compute(cost_ratio, steps):
    bench = make()
    run_cheaper(bench, POLICY, BASELINE, make_slot(), cost_ratio, 5)
    baseline, policy = split(bench.runs.of("transfer: 95 % of the compute"))
    assert [job.steps for job in baseline] == [200] * 5
    assert [job.steps for job in policy] == [steps] * 5


def test_the_wider_model_trains_by_its_own_scaled_recipe():
    bench = make()
    run_wider(bench, POLICY, BASELINE, make_slot())
    usual = bench.candidate(BASELINE, 200).recipe
    (job, *_), _ = split(bench.runs.of("transfer: width"))
    assert job.candidate.recipe != usual


def test_no_two_confirmations_and_no_two_stages_share_a_seed():
    """Confirmations of one campaign differ in number only."""
    seen = {}
    for number in (0, 1):
        bench = make()
        make_trial(bench, POLICY, BASELINE, until="transfer", slot=make_slot(number=number))
        for stage in ("confirm: test", "attribute: perturbations", "transfer: width"):
            seen[stage, number] = {job.seed for job in bench.runs.of(stage)}
        seen["cells", number] = {
            job.seed for job in bench.runs.of("transfer: learning rate and horizon")
        }
        seen["cheaper", number] = {
            job.seed for job in bench.runs.of("transfer: 95 % of the compute")
        }
        folds = {j.fold for j, stage in bench.runs.jobs if stage.startswith("transfer")}
        assert folds == {2 + number}
    assert all(seen.values())
    everything = [seed for seeds in seen.values() for seed in seeds]
    assert len(set(everything)) == len(everything)
