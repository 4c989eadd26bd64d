"""Placebos, perturbations, phases, and the conditions in which a win is repeated."""

import numpy as np
import pytest
from benches import arm, lr_factor, make_bench, make_slot, make_study, make_trial

from nanoevolve_jax.evidence.attribution import draw_perturbations, phases, run_placebos
from nanoevolve_jax.evidence.confirmation import Arms
from nanoevolve_jax.evidence.seeds import Stage, stage_seed
from nanoevolve_jax.evidence.transfer import run_cells, run_cheaper, run_wider
from nanoevolve_jax.execution.job import BATCH_SIZE, CORPUS_SWITCH, LABEL_NOISE
from nanoevolve_jax.policy.spec import ANNEALING

POLICY, BASELINE = arm("candidate", ANNEALING), arm("nanochat")


# Placebos


def own_gate(job):
    """Returns a trajectory that differs on every seed."""
    return np.random.default_rng(job.seed).random(job.steps).astype(np.float32)


@pytest.fixture(scope="module")
def placebos():
    """Returns (bench, result, seeds) of placebos on four seeds."""
    bench = make_bench(lambda job: 2.0, gate_of=own_gate, attribute__donors=3)
    seeds = [stage_seed(Stage.CONFIRM, 0, i) for i in range(4)]
    return bench, run_placebos(bench, POLICY, seeds, fold=2), seeds


def test_the_schedule_replays_the_mean_of_donors_and_yoked_runs_replay_one_of_them(placebos):
    bench, result, seeds = placebos
    donors = bench.runs.of("attribute: donors")
    first = bench.config.confirm.lr_seeds
    assert [j.seed for j in donors] == [stage_seed(Stage.PROMOTE, 0, first + i) for i in range(3)]
    gates = [own_gate(job) for job in donors]
    np.testing.assert_allclose(result.trajectory, np.mean(gates, axis=0), rtol=1e-6)
    schedule, yoked = np.split(np.array(bench.runs.of("attribute: placebos")[-8:], object), 2)
    assert [job[1] for job in schedule] == seeds == [job[1] for job in yoked]
    for i in range(4):
        np.testing.assert_array_equal(schedule[i][4], result.trajectory)
        np.testing.assert_array_equal(yoked[i][4], gates[i % 3])


def test_constants_are_five_values_the_time_mean_and_no_gate(placebos):
    bench, result, _ = placebos
    assert list(result.constants) == [
        *("gate 0", "gate 0.25", "gate 0.5", "gate 0.75", "gate 1"),
        *("its time mean", "gate off"),
    ]
    held = bench.runs.of("attribute: placebos")[::4][:7]
    for job, value in zip(held, (0, 0.25, 0.5, 0.75, 1, result.trajectory.mean()), strict=False):
        np.testing.assert_allclose(job.gate, value, rtol=1e-6)
    assert held[-1].gate is None and not held[-1].candidate.spec.control.enabled


# Perturbations


def test_perturbations_lie_where_the_protocol_says_and_follow_from_the_seed():
    assert draw_perturbations(3, 200) == draw_perturbations(3, 200) != draw_perturbations(4, 200)
    drawn = [draw_perturbations(seed, 1000) for seed in range(400)]
    factors = np.log2([factor for factor, _ in drawn])
    assert -1 <= factors.min() < -0.95 and 0.95 < factors.max() <= 1
    for kind in (LABEL_NOISE, CORPUS_SWITCH, BATCH_SIZE):
        starts = [events[kind].start for _, events in drawn]
        assert 200 <= min(starts) < 220 and 680 < max(starts) <= 700
    noise = [events[LABEL_NOISE] for _, events in drawn]
    assert {(event.stop - event.start, event.amount) for event in noise} == {(100, 0.2)}
    for kind in (CORPUS_SWITCH, BATCH_SIZE):  # lasts to the end of the run
        assert {events[kind].stop for _, events in drawn} == {1000}
    assert {events[BATCH_SIZE].amount for _, events in drawn} == {0.5, 2.0}


# Phases


def phases_of(spec, sensors):
    """Returns the phases of two runs with these sensor columns."""
    bench = make_bench(lambda job: 2.0)
    bench.runs.telemetry = lambda run: columns[run.job["seed"]]
    names = [*spec.control.coefficients._fields, *spec.control.aggressive._fields]
    zero = {name: np.zeros(6) for name in names}
    columns = [
        zero | {"gate": np.linspace(0, 1, 6) + seed, "trust_ratio_mix": np.arange(6.0)} | own
        for seed, own in enumerate(sensors)
    ]
    runs = bench.runs.run([bench.job(arm(spec=spec), seed, 2) for seed in (0, 1)], "test")
    return phases(bench, runs, spec)


def test_thirds_are_means_of_what_acts_over_runs_with_their_interval():
    """The annealing gate also moves trust ratio and clip threshold, but both stages are off."""
    thirds = phases_of(ANNEALING, [{}, {}])["thirds"]
    assert list(thirds) == ["gate", "update_multiplier", "second_moment_beta"]
    first = thirds["gate"][0]
    assert first["mean"] == pytest.approx(0.6)  # 0.1 in one run, 1.1 in the other
    half = 12.706 * 0.5
    assert (first["low"], first["high"]) == pytest.approx((0.6 - half, 0.6 + half), rel=1e-3)


def test_drivers_share_the_variance_of_the_drive():
    control = ANNEALING.control
    weights = control.coefficients._replace(step_fraction=1.0, loss_ema=-2.0)
    spec = ANNEALING._replace(control=control._replace(coefficients=weights))
    step, loss = np.array([0, 1, 0, 1, 0, 1.0]), np.array([0, 0, 1, 0, 0, -1.0])
    drivers = phases_of(spec, [{"step_fraction": step, "loss_ema": loss}, {"step_fraction": step}])[
        "drivers"
    ]
    drive = step - 2 * loss
    share = np.cov(step, drive, ddof=0)[0, 1] / drive.var()
    assert drivers["step_fraction"]["mean"] == pytest.approx((share + 1.0) / 2)
    assert sum(driver["mean"] for driver in drivers.values()) == pytest.approx(1.0)


# Transfer


def gains_a_tenth(job):
    enabled = job.candidate.spec.control.enabled
    return 2.0 - 0.1 * enabled + np.random.default_rng([job.seed, enabled]).normal(0, 0.001)


@pytest.fixture
def study():
    return make_study(make_bench(gains_a_tenth))


def split(jobs):
    """Returns the jobs of the baseline and those of the policy."""
    policy = [job for job in jobs if job.candidate.spec.control.enabled]
    return [job for job in jobs if not job.candidate.spec.control.enabled], policy


def test_cells_halve_and_double_the_learning_rate_and_the_horizon_of_both_arms(study):
    cells = run_cells(study, Arms(POLICY._replace(lr_factor=1.4), BASELINE))
    assert list(cells) == ["lr x0.5", "lr x2", "horizon x0.5", "horizon x2"]
    conditions = [(0.5, 200), (2.0, 200), (1.0, 100), (1.0, 400)]
    jobs = split(study.bench.runs.of("transfer: learning rate and horizon"))
    for of_arm, own in zip(jobs, (1.0, 1.4), strict=True):
        expected = [(own * factor, steps) for factor, steps in conditions for _ in range(8)]
        assert [job.steps for job in of_arm] == [steps for _, steps in expected]
        factors = [lr_factor(study.bench, job) for job in of_arm]
        assert factors == pytest.approx([factor for factor, _ in expected])
    for cell in cells.values():
        assert cell.gains == pytest.approx([0.1] * 8, abs=0.01)


@pytest.mark.parametrize(("cost_ratio", "steps"), [(1.0, 190), (1.25, 152), (0.95, 200)])
def test_the_winner_gets_95_percent_of_the_baselines_compute(study, cost_ratio, steps):
    run_cheaper(study, Arms(POLICY._replace(cost=cost_ratio), BASELINE), 5)
    baseline, policy = split(study.bench.runs.of("transfer: 95 % of the compute"))
    assert [job.steps for job in baseline] == [200] * 5
    assert [job.steps for job in policy] == [steps] * 5


def test_the_wider_model_trains_by_its_own_scaled_recipe(study):
    run_wider(study, Arms(POLICY, BASELINE))
    (job, *_), _ = split(study.bench.runs.of("transfer: width"))
    assert job.candidate.recipe != study.bench.candidate(BASELINE, 200).recipe


STAGES = (
    *("confirm: test", "attribute: perturbations", "transfer: learning rate and horizon"),
    *("transfer: 95 % of the compute", "transfer: width"),
)


def test_no_two_confirmations_and_no_two_stages_share_a_seed():
    """Confirmations of one campaign differ only in their number."""
    seen = []
    for number in (0, 1):
        bench = make_bench(gains_a_tenth)
        make_trial(bench, POLICY, BASELINE, until="transfer", slot=make_slot(number=number))
        seen += [{job.seed for job in bench.runs.of(stage)} for stage in STAGES]
        folds = {j.fold for j, stage in bench.runs.jobs if stage.startswith("transfer")}
        assert folds == {2 + number}
    assert all(seen)
    assert len(set().union(*seen)) == sum(map(len, seen))
