"""The batches of a job, with and without disturbances."""

import numpy as np
import pytest
from training import BATCH, LENGTH, VOCAB, candidate

from nanoevolve_jax.data.batches import batch
from nanoevolve_jax.execution.job import (
    BATCH_SIZE,
    CORPUS_SWITCH,
    LABEL_NOISE,
    Disturbance,
    Job,
    Stream,
    feed,
    job_from_json,
    job_to_json,
)
from nanoevolve_jax.policy.spec import ANNEALING

RNG = np.random.default_rng(0)
STREAM = Stream(
    RNG.integers(0, VOCAB, (200, LENGTH + 1)),
    BATCH,
    VOCAB,
    other_rows=RNG.integers(0, VOCAB, (100, LENGTH + 1)),
)
CALM = Job(candidate(), seed=3, steps=10)


def fed(job, start=0, length=10, capacity=BATCH):
    return feed(STREAM, job, start, length, capacity)


def disturbed(kind, start=4, stop=7, amount=1.0):
    return CALM._replace(disturbance=Disturbance(kind, start, stop, amount))


def same_outside(job, start=4, stop=7):
    """Requires that a disturbance changes no other step, and returns both segments."""
    calm, shaken = fed(CALM), fed(job)
    for step in [*range(start), *range(stop, 10)]:
        np.testing.assert_array_equal(shaken.inputs[step], calm.inputs[step])
        np.testing.assert_array_equal(shaken.targets[step], calm.targets[step])
    return calm, shaken


def test_a_calm_job_gets_its_own_batches_and_its_own_gate():
    segment = fed(CALM)
    for step in range(10):
        rows = batch(STREAM.rows, 3, step, BATCH)
        np.testing.assert_array_equal(segment.inputs[step], rows[:, :-1])
        np.testing.assert_array_equal(segment.targets[step], rows[:, 1:])
    assert np.isnan(segment.gate).all()


def test_segments_are_pieces_of_the_whole_and_end_in_zeros():
    whole, piece = fed(CALM), fed(CALM, start=8, length=4)
    np.testing.assert_array_equal(piece.inputs[:2], whole.inputs[8:])
    assert not piece.inputs[2:].any() and np.isnan(piece.gate).all()


def test_a_given_gate_is_fed_step_by_step():
    gate = np.linspace(0, 1, 10).astype(np.float32)
    piece = fed(CALM._replace(gate=gate), start=6, length=6)
    np.testing.assert_array_equal(piece.gate[:4], gate[6:])
    assert np.isnan(piece.gate[4:]).all()


def test_label_noise_changes_a_share_of_the_targets_and_no_input():
    calm, shaken = same_outside(disturbed(LABEL_NOISE, amount=0.2))
    np.testing.assert_array_equal(shaken.inputs, calm.inputs)
    changed = (shaken.targets != calm.targets)[4:7].mean()
    assert 0.1 < changed < 0.3
    assert shaken.targets.min() >= 0 and shaken.targets.max() < VOCAB
    again = fed(disturbed(LABEL_NOISE, amount=0.2))
    np.testing.assert_array_equal(again.targets, shaken.targets)


def test_a_switch_of_corpus_feeds_the_other_rows():
    _, shaken = same_outside(disturbed(CORPUS_SWITCH))
    for step in (4, 5, 6):
        rows = batch(STREAM.other_rows, 3, step, BATCH)
        np.testing.assert_array_equal(shaken.inputs[step], rows[:, :-1])
    with pytest.raises(ValueError, match="other_rows"):
        feed(STREAM._replace(other_rows=None), disturbed(CORPUS_SWITCH), 0, 10, BATCH)


def test_half_a_batch_is_repeated_to_fill_the_program():
    calm, shaken = same_outside(disturbed(BATCH_SIZE, amount=0.5))
    half = BATCH // 2
    np.testing.assert_array_equal(shaken.inputs[5], np.tile(calm.inputs[5][:half], (2, 1)))


def test_a_doubled_batch_brings_rows_the_run_does_not_meet_otherwise():
    wide = feed(STREAM, disturbed(BATCH_SIZE, amount=2.0), 0, 10, 2 * BATCH)
    calm = feed(STREAM, CALM, 0, 10, 2 * BATCH)
    np.testing.assert_array_equal(calm.inputs[5][:BATCH], calm.inputs[5][BATCH:])
    np.testing.assert_array_equal(wide.inputs[5][:BATCH], calm.inputs[5][:BATCH])
    met = {row.tobytes() for rows in calm.inputs for row in rows}
    assert all(row.tobytes() not in met for row in wide.inputs[5][BATCH:])
    with pytest.raises(ValueError, match="capacity"):
        fed(disturbed(BATCH_SIZE, amount=2.0))


JOBS = [
    CALM,
    CALM._replace(seed=4),
    CALM._replace(steps=11),
    CALM._replace(fold=1),
    CALM._replace(attempt=1),
    CALM._replace(candidate=candidate(ANNEALING)),
    CALM._replace(candidate=candidate(matrix_lr=0.021)),
    CALM._replace(gate=np.linspace(0, 1, 10).astype(np.float32)),
    disturbed(LABEL_NOISE, amount=0.2),
    disturbed(LABEL_NOISE, amount=0.3),
]


def test_every_field_of_a_job_is_in_its_key():
    assert len({job.key for job in JOBS}) == len(JOBS)


@pytest.mark.parametrize("job", JOBS)
def test_a_job_survives_json(job):
    again = job_from_json(job_to_json(job))
    assert again.key == job.key
    assert again._replace(gate=None) == job._replace(gate=None)
    np.testing.assert_array_equal(again.gate, job.gate)
