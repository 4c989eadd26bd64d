"""What a run is fed at every step: its own batches, and what a disturbance makes of them."""

from typing import NamedTuple

import numpy as np

from nanoevolve_jax.data.batches import batch
from nanoevolve_jax.execution.job import BATCH_SIZE, CORPUS_SWITCH, LABEL_NOISE, Job
from nanoevolve_jax.execution.train import Segment


class Stream(NamedTuple):
    """The text that batches are drawn from."""

    rows: np.ndarray  # [N, T + 1]
    batch_size: int  # rows a step, when nothing disturbs it
    vocab_size: int
    other_rows: np.ndarray | None = None  # [M, T + 1], of the corpus to switch to


def _disturbed(job: Job, step: int, kind: str) -> bool:
    event = job.disturbance
    return event is not None and event.kind == kind and event.start <= step < event.stop


def _rows(stream: Stream, job: Job, step: int) -> np.ndarray:
    if _disturbed(job, step, CORPUS_SWITCH):
        if stream.other_rows is None:
            raise ValueError("other_rows is None; allowed: the rows of the corpus to switch to")
        return batch(stream.other_rows, job.seed, step, stream.batch_size)
    rows = batch(stream.rows, job.seed, step, stream.batch_size)
    if _disturbed(job, step, BATCH_SIZE):
        # Beyond the horizon lie rows that this run does not meet otherwise.
        more = batch(stream.rows, job.seed, step + job.steps, stream.batch_size)
        rows = np.concatenate([rows, more])[: round(stream.batch_size * job.disturbance.amount)]
    return rows


def _targets(stream: Stream, job: Job, step: int, targets: np.ndarray) -> np.ndarray:
    if not _disturbed(job, step, LABEL_NOISE):
        return targets
    rng = np.random.default_rng([job.seed, step])
    wrong = rng.integers(0, stream.vocab_size, targets.shape, targets.dtype)
    return np.where(rng.random(targets.shape) < job.disturbance.amount, wrong, targets)


def feed(stream: Stream, job: Job, start: int, length: int, capacity: int) -> Segment:
    """The segment of `length` steps from `start` on; steps beyond the horizon are zeros.

    Args:
      stream: the text.
      job: of one lane.
      start: first step.
      length: K.
      capacity: rows a step of the compiled program; a smaller batch is repeated to fill it,
        which leaves its mean loss and gradient as they are.
    """
    width = stream.rows.shape[1] - 1
    inputs = np.zeros((length, capacity, width), np.int32)
    targets = np.zeros_like(inputs)
    gate = np.full(length, np.nan, np.float32)
    for i in range(min(length, job.steps - start)):
        rows = _rows(stream, job, start + i)
        if capacity % len(rows):
            raise ValueError(f"capacity is {capacity}; allowed: a multiple of {len(rows)} rows")
        rows = np.tile(rows, (capacity // len(rows), 1)).astype(np.int32)
        inputs[i] = rows[:, :-1]
        targets[i] = _targets(stream, job, start + i, rows[:, 1:])
        if job.gate is not None:
            gate[i] = job.gate[start + i]
    return Segment(inputs, targets, gate)
