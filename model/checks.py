"""One line of a parity table: an error against its gate."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Check(NamedTuple):
    """One line of the table."""

    name: str
    max_abs: float  # largest absolute error
    relative: float  # L2 norm of the error over the L2 norm of the reference
    gate: str  # what had to hold, in words
    passed: bool


def within(
    name: str, got, want, max_abs: float | None = None, *, relative=None, noise=0.0
) -> Check:
    """Compares two arrays by their largest absolute error, or else by relative L2 error.

    Args:
      name: of the quantity.
      got: computed here.
      want: the reference, same shape.
      max_abs: the gate on the largest absolute error, or None.
      relative: the gate on the relative L2 error, or None.
      noise: an absolute error up to which a relative gate passes regardless.

    Returns:
      The check; a value that is not finite never passes.
    """
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf is nan, which no gate passes
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
    """One check for many of the same gate: the failures, or else the worst that passed."""
    failed = [check for check in checks if not check.passed]
    if failed:
        return failed
    top = max(checks, key=lambda check: check.relative)
    largest = max(check.max_abs for check in checks)
    return [Check(f"{name} ({len(checks)}, worst {top.name})", largest, *top[2:])]
