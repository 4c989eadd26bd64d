"""Batches as pure functions of (rows, seed, step), so that no iterator has any state to save."""

import functools

import numpy as np
from nanoevolve_jax.data.errors import CorpusError


def batch(rows: np.ndarray, seed: int, step: int, batch_size: int) -> np.ndarray:
    """Returns the batch of one step, without iterating over the steps before it.

    Every epoch is a fresh permutation of the rows, decided by (seed, epoch) alone, and holds
    floor(N / batch_size) batches; so no row comes twice within an epoch.

    Args:
      rows: [N, T + 1] token ids.
      seed: non-negative integer that decides the order.
      step: non-negative index of the step.
      batch_size: rows in a batch, at most N.

    Returns:
      int32 [batch_size, T + 1].
    """
    per_epoch = _batches_per_epoch(rows, batch_size)
    epoch, index = divmod(step, per_epoch)
    order = permutation(len(rows), seed, epoch)
    chosen = order[index * batch_size : (index + 1) * batch_size]
    return rows[chosen].astype(np.int32)


def batches(rows: np.ndarray, seed: int, start: int, stop: int, batch_size: int) -> np.ndarray:
    """Returns the batches of the steps from `start` up to, not including, `stop`.

    Returns:
      int32 [stop - start, batch_size, T + 1].
    """
    result = np.empty((stop - start, batch_size, rows.shape[1]), np.int32)
    for step in range(start, stop):
        result[step - start] = batch(rows, seed, step, batch_size)
    return result


@functools.lru_cache(maxsize=16)
def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """Returns a permutation of range(count), the same in every version of NumPy.

    NumPy promises the raw output of its bit generators and of SeedSequence for ever, but not
    that of `Generator.permutation` (NEP 19); so random 64-bit keys are sorted instead.
    """
    keys = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(count)
    order = np.argsort(keys, kind="stable")
    order.flags.writeable = False  # it is shared by all callers through the cache
    return order


def check_horizon(rows: np.ndarray, *, steps: int, batch_size: int, max_epochs: float) -> None:
    """Raises CorpusError when the training rows are too few for the run that is asked for.

    Args:
      rows: [N, T + 1] training rows.
      steps: steps of training.
      batch_size: rows in a batch.
      max_epochs: how many times, at most, a row may be seen.
    """
    count = len(rows)
    if count < batch_size:
        raise CorpusError(
            f"train.batch_size: {batch_size} rows in a batch, but data.corpus gives only {count} "
            f"rows; at most {count}, or a larger corpus"
        )
    per_epoch = count // batch_size
    allowed = int(per_epoch * max_epochs)
    if steps > allowed:
        raise CorpusError(
            f"train.steps: {steps} steps with train.batch_size {batch_size} need "
            f"{steps / per_epoch:.6g} epochs of the {count} rows of data.corpus, more than "
            f"data.max_epochs {max_epochs:g}; at most {allowed} steps, or a larger corpus"
        )


def _batches_per_epoch(rows: np.ndarray, batch_size: int) -> int:
    if not 1 <= batch_size <= len(rows):
        raise CorpusError(
            f"train.batch_size: {batch_size} is not between 1 and the {len(rows)} rows "
            "of data.corpus"
        )
    return len(rows) // batch_size
