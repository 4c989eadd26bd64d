"""Batches as a pure function of (rows, seed, step), so there is no iterator state to save."""

import functools

import numpy as np
from nanoevolve_jax.data.errors import CorpusError

from nanoevolve_jax.errors import must


def batch(rows: np.ndarray, seed: int, step: int, batch_size: int) -> np.ndarray:
    """Returns the batch of one step, without computing the batches before it.

    Each epoch has floor(N / batch_size) batches and a permutation of the rows that depends only
    on (seed, epoch), so no row occurs twice within an epoch.

    Args:
      rows: Token ids, [N, T + 1].
      seed: Seed of the order; not negative.
      step: Index of the step; not negative.
      batch_size: Number of rows per batch, 1 to N.

    Returns:
      Token ids, int32[batch_size, T + 1].

    Raises:
      CorpusError: If `batch_size` is out of range.
    """
    per_epoch = _batches_per_epoch(rows, batch_size)
    epoch, index = divmod(step, per_epoch)
    order = permutation(len(rows), seed, epoch)
    chosen = order[index * batch_size : (index + 1) * batch_size]
    return rows[chosen].astype(np.int32)


def batches(rows: np.ndarray, seed: int, start: int, stop: int, batch_size: int) -> np.ndarray:
    """Returns the batches of the steps `start` to `stop - 1`; see `batch`.

    Returns:
      Token ids, int32[stop - start, batch_size, T + 1].
    """
    result = np.empty((stop - start, batch_size, rows.shape[1]), np.int32)
    for step in range(start, stop):
        result[step - start] = batch(rows, seed, step, batch_size)
    return result


@functools.lru_cache(maxsize=16)
def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """Returns a permutation of `range(count)` that is the same in every version of NumPy.

    NumPy guarantees the raw output of its bit generators and of SeedSequence, but not that of
    `Generator.permutation` (NEP 19). Sorting random 64-bit keys avoids the latter.
    """
    keys = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(count)
    order = np.argsort(keys, kind="stable")
    order.flags.writeable = False  # All callers share it through the cache.
    return order


def check_horizon(rows: np.ndarray, *, steps: int, batch_size: int, max_epochs: float) -> None:
    """Checks that there are enough training rows for a run.

    Args:
      rows: Training rows, [N, T + 1].
      steps: Number of training steps.
      batch_size: Number of rows per batch.
      max_epochs: Largest number of times that a row may be used.

    Raises:
      CorpusError: If the run needs more rows.
    """
    count = len(rows)
    if count < batch_size:
        raise CorpusError(
            must(
                "config.train.batch_size",
                f"be at most {count}, the rows of config.data.corpus",
                batch_size,
            )
        )
    per_epoch = count // batch_size
    allowed = int(per_epoch * max_epochs)
    if steps > allowed:
        raise CorpusError(
            must(
                "config.train.steps",
                f"be at most {allowed} with config.train.batch_size {batch_size}, the {count} rows "
                f"of config.data.corpus and config.data.max_epochs {max_epochs:g}",
                steps,
            )
        )


def _batches_per_epoch(rows: np.ndarray, batch_size: int) -> int:
    if not 1 <= batch_size <= len(rows):
        raise CorpusError(
            must(
                "config.train.batch_size",
                f"be 1 to {len(rows)}, the rows of config.data.corpus",
                batch_size,
            )
        )
    return len(rows) // batch_size
