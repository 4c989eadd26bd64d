"""Rows of a parity table, which compare an error with its tolerance."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Check(NamedTuple):
    """A row of the table."""

    name: str
    max_abs: float  # largest absolute error
    relative: float  # L2 norm of the error over the L2 norm of the reference
    gate: str  # tolerance, as text
    passed: bool


def within(
    name: str, got, want, max_abs: float | None = None, *, relative=None, noise=0.0
) -> Check:
    """Compares two arrays by their largest absolute error or their relative L2 error.

    Args:
      name: Name of the quantity.
      got: Computed array.
      want: Reference array of the same shape.
      max_abs: Tolerance of the largest absolute error, or None.
      relative: Tolerance of the relative L2 error, used if `max_abs` is None.
      noise: Absolute error below which the relative tolerance does not apply.

    Returns:
      Row of the table. Values that are not finite never pass.
    """
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf is nan, which never passes
        error = np.abs(got - want)
    largest = float(error.max(initial=0.0))
    norm = float(np.linalg.norm(want))
    length = float(np.linalg.norm(error))
    ratio = 0.0 if length == 0 else length / norm if norm else np.inf
    if max_abs is None:
        passed = ratio <= relative or largest <= noise
        return Check(name, largest, ratio, f"rel <= {relative:.0e}", bool(passed))
    gate = f"max <= {max_abs:.0e}" if max_abs else "exact"
    return Check(name, largest, ratio, gate, bool(largest <= max_abs))


def worst(name: str, checks: Sequence[Check]) -> list[Check]:
    """Summarises checks with the same tolerance: all failures, or the worst passing check."""
    failed = [check for check in checks if not check.passed]
    if failed:
        return failed
    top = max(checks, key=lambda check: check.relative)
    largest = max(check.max_abs for check in checks)
    return [Check(f"{name} ({len(checks)}, worst {top.name})", largest, *top[2:])]
