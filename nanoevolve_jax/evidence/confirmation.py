"""The test of one candidate against the baseline: two looks, a least gain, a bounded tail."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from nanoevolve_jax.errors import apart
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.statistics import PairedTest, paired_test

WIN, NULL, CONTINUE = "win", "null", "continue"


class ConfirmationRules(NamedTuple):
    """When a candidate has won."""

    first_seeds: int = 8
    first_p: float = 0.01
    seeds: int = 20
    p: float = 0.04
    min_gain: float = 0.5  # sigmas
    worst: float = 2.0  # sigmas the worst run may be worse than the baseline's worst
    confirmations: int = 1  # of the campaign; divides both p


_LOOSER_IF_LARGER = ("first_p", "p", "worst")
_LOOSER_IF_SMALLER = ("first_seeds", "seeds", "min_gain")


def loosened(rules: ConfirmationRules) -> dict[str, float]:
    """The rules that are looser than the protocol's own, by name; a win by these does not count."""
    usual = ConfirmationRules()
    larger = {name for name in _LOOSER_IF_LARGER if getattr(rules, name) > getattr(usual, name)}
    smaller = {name for name in _LOOSER_IF_SMALLER if getattr(rules, name) < getattr(usual, name)}
    return {name: x for name, x in rules._asdict().items() if name in larger | smaller}


class Decision(NamedTuple):
    """What a look at the runs decides."""

    outcome: str  # WIN, NULL or CONTINUE
    reason: str
    test: PairedTest


def standing(decision: Decision) -> tuple[int, float]:
    """Orders decisions of one look from the worst for a candidate to the best.

    A candidate that has to beat several baselines has done what the least of its decisions says.
    """
    return (NULL, CONTINUE, WIN).index(decision.outcome), decision.test.mean


def decide(
    baseline: Sequence[float], candidate: Sequence[float], sigma: float, rules: ConfirmationRules
) -> Decision:
    """Looks at the runs so far; there are two looks, after `first_seeds` and `seeds` pairs.

    Args:
      baseline: float[n], bpb at its own best learning rate; NaN for a failed run.
      candidate: float[n], likewise, on the same seeds.
      sigma: bpb, of the baseline between seeds.
      rules: of this campaign.

    Raises:
      ValueError: if n is no look.
      EvidenceError: if a run of the baseline failed, for then there is nothing to compare with.
    """
    n = len(baseline)
    if n not in (rules.first_seeds, rules.seeds) or len(candidate) != n:
        raise ValueError(f"{n} pairs; allowed: {rules.first_seeds} or {rules.seeds}")
    baseline, candidate = np.asarray(baseline, float), np.asarray(candidate, float)
    if not np.all(np.isfinite(baseline)):
        failed = int(np.flatnonzero(~np.isfinite(baseline))[0])
        raise EvidenceError(
            f"the baseline's run on pair {failed + 1} failed; "
            "allowed: a baseline that trains on every seed, from a new calibration"
        )
    test = paired_test(baseline - candidate)
    if not np.all(np.isfinite(candidate)):
        failed = int(np.flatnonzero(~np.isfinite(candidate))[0])
        return Decision(NULL, f"its run on pair {failed + 1} failed", test)
    last = n == rules.seeds
    if test.mean <= 0:
        return Decision(NULL, "its mean gain is not positive", test)
    limit = (rules.p if last else rules.first_p) / rules.confirmations
    falls_short = None
    if test.p > limit:
        p, most = apart(test.p, limit)
        falls_short = f"p is {p}, above {most}"
    elif test.mean < rules.min_gain * sigma:
        gain, least = apart(test.mean / sigma, rules.min_gain, 2, "f")
        falls_short = f"its gain is {gain} sigma, below {least}"
    elif candidate.max() > baseline.max() + rules.worst * sigma:
        falls_short = "its worst run is too far below the baseline's worst"
    if falls_short is None:
        return Decision(WIN, f"p is {test.p:.3g} after {n} pairs", test)
    return Decision(NULL if last else CONTINUE, falls_short, test)


@functools.lru_cache
def _standard_pairs(rules: ConfirmationRules, campaigns: int) -> np.ndarray:
    """Standard normal noise, float64[campaigns, seeds]."""
    return np.random.default_rng(0).standard_normal((campaigns, rules.seeds))


def power(
    effect: float, paired_sigma: float, rules: ConfirmationRules, campaigns: int = 4000
) -> float:
    """How often a candidate with a true gain would win, by simulation of the two looks.

    The bound on the worst run is left out: it depends on what both arms share.

    Args:
      effect: true mean gain, in sigmas.
      paired_sigma: standard deviation of one pair's gain, in sigmas.
      rules: of the campaign.
      campaigns: simulated.
    """
    gains = effect + paired_sigma * _standard_pairs(rules, campaigns)
    first = gains[:, : rules.first_seeds]

    def wins(part: np.ndarray, p: float) -> np.ndarray:
        n = part.shape[1]
        mean, sd = part.mean(1), part.std(1, ddof=1)
        limit = stats.t.isf(p / rules.confirmations, n - 1)
        return (mean / (sd / math.sqrt(n)) >= limit) & (mean >= rules.min_gain)

    early = wins(first, rules.first_p)
    late = (first.mean(1) > 0) & wins(gains, rules.p)
    return float(np.mean(early | late))


def minimum_detectable_effect(
    paired_sigma: float, rules: ConfirmationRules, wanted: float = 0.8
) -> float:
    """The smallest true gain, in sigmas, that wins with probability `wanted`; to 0.05."""
    effects = np.arange(0.05, 10.0, 0.05)
    reached = (effect for effect in effects if power(effect, paired_sigma, rules) >= wanted)
    return float(next(reached, math.inf))
