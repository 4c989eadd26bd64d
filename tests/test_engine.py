"""The local engine: placebos through the same program, folds, horizons and repeats."""

import functools

import numpy as np
import pytest
from training import BATCH, TASK, candidate, make_engine

from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.runs import FILE, Runs, bpb, read_runs
from nanoevolve_jax.execution import population
from nanoevolve_jax.execution.engine import named
from nanoevolve_jax.execution.job import Job
from nanoevolve_jax.execution.train import TELEMETRY
from nanoevolve_jax.policy.spec import ANNEALING, set_field

GATE = TELEMETRY.index("gate")
SENSING = set_field(ANNEALING, "control.coefficients.loss_ema", 1.0)
SENSING = set_field(SENSING, "control.coefficients.grad_alignment_ema", -1.0)
JOB = Job(candidate(SENSING), seed=1, steps=10)


@functools.lru_cache
def engine():
    return make_engine(population.make_programs(TASK, devices=2, lanes=1))


def run(*jobs):
    return list(engine().run(jobs))


def test_replaying_a_runs_own_gate_reproduces_it_bit_for_bit():
    (sensed,) = run(JOB)
    own = sensed.telemetry[:, GATE]
    assert np.ptp(own) > 0.05
    replayed, other = run(JOB._replace(gate=own), JOB._replace(gate=own[::-1].copy()))
    np.testing.assert_array_equal(replayed.telemetry, sensed.telemetry)
    assert replayed.val_bpb == sensed.val_bpb
    assert other.val_bpb != sensed.val_bpb


def test_a_held_gate_is_what_the_actuators_follow():
    held, free = run(JOB._replace(gate=np.full(10, 0.25, np.float32)), JOB)
    multiplier = TELEMETRY.index("update_multiplier")
    low, high = (pole.update_multiplier for pole in SENSING.control[-2:])
    np.testing.assert_allclose(held.telemetry[:, multiplier], low + 0.25 * (high - low), rtol=1e-6)
    assert np.ptp(free.telemetry[:, multiplier]) > 0


def test_results_come_in_order_whatever_the_horizons_and_folds():
    jobs = [JOB._replace(steps=s, fold=f) for s, f in ((10, 0), (6, 0), (6, 1), (10, 1), (10, 0))]
    together = run(*jobs)
    alone = [run(job)[0] for job in jobs]
    assert [len(r.telemetry) for r in together] == [10, 6, 6, 10, 10]
    assert [r.val_bpb for r in together] == [r.val_bpb for r in alone]
    np.testing.assert_array_equal(together[0].telemetry, together[3].telemetry)
    assert together[0].val_bpb != together[3].val_bpb  # another validation text
    assert together[0].val_bpb == together[4].val_bpb


def test_a_step_of_repeated_rows_equals_one_of_the_rows_alone():
    wide = TASK._replace(batch_size=2 * BATCH)
    programs = population.make_programs(wide, devices=2, lanes=1)
    roomy = engine()._replace(task=wide, programs=programs)
    (narrow,), (repeated,) = run(JOB), list(roomy.run([JOB]))
    np.testing.assert_allclose(repeated.val_bpb, narrow.val_bpb, rtol=5e-4)


def test_progress_names_every_job_and_brings_every_loss_once():
    jobs, heard = [JOB, JOB._replace(seed=2), JOB._replace(seed=3)], []
    results = list(engine().run(jobs, named(heard.append, {jobs[0].key: "the first"})))
    names = ["the first", *(job.key for job in jobs[1:])]
    for name, result in zip(names, results, strict=True):
        own = [(p, p.names.index(name)) for p in heard if name in p.names]
        assert [p.step for p, _ in own][-1] == 10
        losses = np.concatenate([p.loss[i] for p, i in own])
        np.testing.assert_array_equal(losses, result.telemetry[:, TELEMETRY.index("loss")])


# The store of runs -------------------------------------------------------------------------


def store(folder, make=engine):
    return Runs(folder, {"main": make})


def refuse():
    raise AssertionError("trained again")


def test_a_run_that_is_known_is_not_made_again(tmp_path):
    jobs = [JOB, JOB._replace(seed=2)]
    first = store(tmp_path).run(jobs, "test")
    again = store(tmp_path, refuse).run([*reversed(jobs), JOB], "test")
    assert [r.key for r in again] == [first[1].key, first[0].key, first[0].key]
    assert again[0] == first[1]
    np.testing.assert_array_equal(bpb(first), [r.val_bpb for r in run(*jobs)])


def test_whoever_hears_of_runs_hears_of_all_in_the_order_of_the_file(tmp_path):
    heard, again = [], []
    jobs = [JOB, JOB._replace(seed=2), JOB._replace(seed=3)]
    names = []
    runs = Runs(
        tmp_path, {"main": engine}, lambda p: names.extend(p.names), on_event=[heard.append]
    )
    runs.run(jobs[:2], "test")
    runs.run(jobs, "test")
    Runs(tmp_path, {"main": refuse}, on_event=[again.append])
    assert [r.key for r in heard] == [r.key for r in again] == [r.key for r in read_runs(tmp_path)]
    assert len(heard) == 3
    assert list(dict.fromkeys(names)) == ["test 1", "test 2", "test 3"]


def test_telemetry_and_what_was_spent_are_kept(tmp_path):
    runs = store(tmp_path)
    (made,) = runs.run([JOB], "a stage")
    (result,) = run(JOB)
    np.testing.assert_array_equal(runs.telemetry(made)["gate"], result.telemetry[:, GATE])
    tokens = 10 * BATCH * TASK.model.sequence_len
    assert store(tmp_path).spent() == {"a stage": {"runs": 1, "failed": 0, "tokens": tokens}}
    (tmp_path / "telemetry" / f"{made.key}.npz").write_bytes(b"PK")
    with pytest.raises(EvidenceError, match="cannot be read"):
        runs.telemetry(made)


def test_a_failed_run_is_kept_as_failed_and_stays_so(tmp_path):
    hot = JOB._replace(candidate=candidate(embedding_lr=1e30, matrix_lr=1e30))
    (made,) = store(tmp_path).run([hot], "test")
    assert made.failure is not None and np.isnan(made.val_bpb)
    (again,) = store(tmp_path, refuse).run([hot], "test")
    assert again.failure == made.failure and np.isnan(again.val_bpb)
    assert store(tmp_path).spent()["test"]["failed"] == 1


def test_a_torn_line_is_cut_off_and_a_changed_one_refused(tmp_path):
    jobs = [JOB, JOB._replace(seed=2)]
    store(tmp_path).run(jobs, "test")
    path = tmp_path / FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    store(tmp_path).run(jobs, "test")
    assert path.read_bytes() == whole
    path.write_bytes(whole.replace(b'"seed": 1', b'"seed": 7', 1))
    with pytest.raises(EvidenceError, match="line 1 is damaged"):
        store(tmp_path)
