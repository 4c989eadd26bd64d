"""Batches as pure functions of (rows, seed, step), so a resumed run has no iterator to restore."""

import functools

import numpy as np

from nanoevolve_jax.data import CorpusError
from nanoevolve_jax.errors import must


def batch(rows: np.ndarray, seed: int, step: int, batch_size: int) -> np.ndarray:
    """Returns the batch of one step without iterating over earlier steps.

    Each epoch is a permutation of the rows that depends only on (seed, epoch). It has
    floor(N / batch_size) batches, so no row repeats within an epoch.

    Args:
      rows: Token ids, uint16 or uint32 [N, T + 1].
      seed: Seed of the order, at least 0.
      step: Index of the step, at least 0.
      batch_size: Rows per batch, from 1 to N.

    Returns:
      Token ids, int32 [batch_size, T + 1].
    """
    per_epoch = _batches_per_epoch(rows, batch_size)
    epoch, index = divmod(step, per_epoch)
    order = permutation(len(rows), seed, epoch)
    chosen = order[index * batch_size : (index + 1) * batch_size]
    return rows[chosen].astype(np.int32)


def batches(rows: np.ndarray, seed: int, start: int, stop: int, batch_size: int) -> np.ndarray:
    """Returns the batches of the steps from `start` (included) to `stop` (excluded).

    Returns:
      Token ids, int32 [stop - start, batch_size, T + 1].
    """
    result = np.empty((stop - start, batch_size, rows.shape[1]), np.int32)
    for step in range(start, stop):
        result[step - start] = batch(rows, seed, step, batch_size)
    return result


@functools.lru_cache(maxsize=16)
def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """Returns a permutation of range(count) that is the same in every version of NumPy.

    NumPy guarantees the raw output of its bit generators and of SeedSequence, but not that of
    `Generator.permutation` (NEP 19), so the function sorts random 64-bit keys.
    """
    keys = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(count)
    order = np.argsort(keys, kind="stable")
    order.flags.writeable = False  # the cache shares it between callers
    return order


def check_horizon(rows: np.ndarray, *, steps: int, batch_size: int, max_epochs: float) -> None:
    """Raises CorpusError if there are too few training rows for a run.

    Args:
      rows: Training rows, [N, T + 1].
      steps: Steps of training.
      batch_size: Rows per batch.
      max_epochs: Largest number of passes over the rows.
    """
    count = len(rows)
    if count < batch_size:
        raise _too_large(batch_size, count)
    per_epoch = count // batch_size
    allowed = int(per_epoch * max_epochs)
    if steps > allowed:
        rule = (
            f"be at most {allowed}, because data.corpus has {count} rows, train.batch_size is "
            f"{batch_size} and data.max_epochs is {max_epochs:g}"
        )
        raise CorpusError(must("config.train.steps", rule, steps))


def _batches_per_epoch(rows: np.ndarray, batch_size: int) -> int:
    if not 1 <= batch_size <= len(rows):
        raise _too_large(batch_size, len(rows))
    return len(rows) // batch_size


def _too_large(batch_size: int, rows: int) -> CorpusError:
    rule = f"be from 1 to {rows}, the training rows of data.corpus"
    return CorpusError(must("config.train.batch_size", rule, batch_size))
