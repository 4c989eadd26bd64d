"""Placebos and perturbations: who replays what, when what happens, and what a gate moves."""

import numpy as np
import pytest
from benches import arm, make_bench

from nanoevolve_jax.evidence.attribution import draw_perturbations, phases, run_placebos
from nanoevolve_jax.evidence.seeds import Stage, stage_seed
from nanoevolve_jax.execution.job import BATCH_SIZE, CORPUS_SWITCH, LABEL_NOISE
from nanoevolve_jax.policy.spec import ANNEALING

STEPS = 200
POLICY = arm("candidate", ANNEALING)


def own_gate(job):
    """A trajectory that no other seed has."""
    return np.random.default_rng(job.seed).random(job.steps).astype(np.float32)


@pytest.fixture(scope="module")
def placebos():
    """(bench, result, jobs by confirmation seed) of placebos on four seeds."""
    bench = make_bench(lambda job: 2.0, gate_of=own_gate, attribute__donors=3)
    seeds = [stage_seed(Stage.CONFIRM, 0, i) for i in range(4)]
    return bench, run_placebos(bench, POLICY, seeds, fold=2), seeds


def donor_gates(bench):
    return [own_gate(job) for job in bench.runs.of("attribute: donors")]


def test_the_schedule_replays_the_mean_of_donors_on_promotion_seeds(placebos):
    bench, found, seeds = placebos
    donors = bench.runs.of("attribute: donors")
    first = bench.config.confirm.lr_seeds
    assert [j.seed for j in donors] == [stage_seed(Stage.PROMOTE, 0, first + i) for i in range(3)]
    mean = np.mean(donor_gates(bench), axis=0)
    np.testing.assert_allclose(found.trajectory, mean, rtol=1e-6)
    scheduled = bench.runs.of("attribute: placebos")[-8:-4]
    assert [job.seed for job in scheduled] == seeds
    for job in scheduled:
        np.testing.assert_array_equal(job.gate, found.trajectory)


def test_yoked_runs_replay_one_other_seeds_raw_trajectory(placebos):
    bench, _, _ = placebos
    donors = donor_gates(bench)
    for i, job in enumerate(bench.runs.of("attribute: placebos")[-4:]):
        np.testing.assert_array_equal(job.gate, donors[i % 3])


def test_constants_are_five_values_the_time_mean_and_no_gate(placebos):
    bench, found, _ = placebos
    assert list(found.constants) == [
        *("gate 0", "gate 0.25", "gate 0.5", "gate 0.75", "gate 1"),
        *("its time mean", "gate off"),
    ]
    held = bench.runs.of("attribute: placebos")[::4][:7]
    for job, value in zip(held, (0, 0.25, 0.5, 0.75, 1, found.trajectory.mean()), strict=False):
        np.testing.assert_allclose(job.gate, value, rtol=1e-6)
    assert held[-1].gate is None and not held[-1].candidate.spec.control.enabled


def test_perturbations_lie_where_the_protocol_says():
    drawn = [draw_perturbations(seed, 1000) for seed in range(400)]
    factors = np.log2([factor for factor, _ in drawn])
    assert -1 <= factors.min() < -0.95 and 0.95 < factors.max() <= 1
    for kind in (LABEL_NOISE, CORPUS_SWITCH, BATCH_SIZE):
        starts = [events[kind].start for _, events in drawn]
        assert 200 <= min(starts) < 220 and 680 < max(starts) <= 700
    noise = [events[LABEL_NOISE] for _, events in drawn]
    assert {event.stop - event.start for event in noise} == {100}
    assert {event.amount for event in noise} == {0.2}
    for kind in (CORPUS_SWITCH, BATCH_SIZE):  # to the end of the run
        assert {events[kind].stop for _, events in drawn} == {1000}
    assert {events[BATCH_SIZE].amount for _, events in drawn} == {0.5, 2.0}


def test_a_seed_draws_its_perturbations_again_and_no_other_seed_does():
    assert draw_perturbations(3, STEPS) == draw_perturbations(3, STEPS)
    assert draw_perturbations(3, STEPS) != draw_perturbations(4, STEPS)


# Phases


def phases_of(spec, sensors):
    """Phases of two runs with these sensor columns."""
    bench = make_bench(lambda job: 2.0)
    bench.runs.telemetry = lambda run: columns[run.job["seed"]]
    names = [*spec.control.coefficients._fields, *spec.control.aggressive._fields]
    zero = {name: np.zeros(6) for name in names}
    columns = [
        zero | {"gate": np.linspace(0, 1, 6) + seed, "trust_ratio_mix": np.arange(6.0)} | found
        for seed, found in enumerate(sensors)
    ]
    runs = bench.runs.run([bench.job(arm(spec=spec), seed, 2) for seed in (0, 1)], "test")
    return phases(bench, runs, spec)


def test_actuators_that_nothing_reads_are_no_part_of_the_phases():
    """The annealing gate moves trust ratio and clip threshold, and both stages are off."""
    found = phases_of(ANNEALING, [{}, {}])
    assert list(found["thirds"]) == ["gate", "update_multiplier", "second_moment_beta"]


def test_thirds_are_means_over_runs_with_their_interval():
    first = phases_of(ANNEALING, [{}, {}])["thirds"]["gate"][0]
    assert first["mean"] == pytest.approx(0.6)  # 0.1 in one run, 1.1 in the other
    assert first["low"] == pytest.approx(0.6 - 12.706 * 0.5, rel=1e-3)
    assert first["high"] == pytest.approx(0.6 + 12.706 * 0.5, rel=1e-3)


def test_drivers_share_the_variance_of_the_drive():
    control = ANNEALING.control
    spec = ANNEALING._replace(
        control=control._replace(
            coefficients=control.coefficients._replace(step_fraction=1.0, loss_ema=-2.0)
        )
    )
    step, loss = np.array([0, 1, 0, 1, 0, 1.0]), np.array([0, 0, 1, 0, 0, -1.0])
    found = phases_of(spec, [{"step_fraction": step, "loss_ema": loss}, {"step_fraction": step}])
    drive = step - 2 * loss
    share = np.cov(step, drive, ddof=0)[0, 1] / drive.var()
    assert found["drivers"]["step_fraction"]["mean"] == pytest.approx((share + 1.0) / 2)
    assert sum(driver["mean"] for driver in found["drivers"].values()) == pytest.approx(1.0)
