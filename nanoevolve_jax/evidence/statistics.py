"""Paired tests, confidence intervals, seed noise, rankings and learning-rate fits."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from nanoevolve_jax.evidence.errors import EvidenceError

Floats = Sequence[float] | np.ndarray


class PairedTest(NamedTuple):
    """The result of a one-sided paired t-test for a mean gain above 0."""

    mean: float  # mean gain; -inf if any gain is not finite
    sd: float  # standard deviation of the gains
    n: int  # number of pairs
    p: float  # p-value
    low: float  # lower end of the two-sided 95 % confidence interval of the mean
    high: float  # upper end of that interval


class Interval(NamedTuple):
    """A mean and its two-sided 95 % confidence interval."""

    mean: float
    low: float
    high: float


def mean_interval(values: Floats) -> Interval:
    """Returns the mean of values and its 95 % confidence interval.

    Args:
      values: Independent and finite values; float[n].

    Returns:
      The mean and its interval. The interval has length 0 if the values have no variance.
    """
    array = np.asarray(values, np.float64)
    mean = float(array.mean())
    if len(array) < 2 or np.ptp(array) == 0:
        return Interval(mean, mean, mean)
    low, high = stats.t.interval(0.95, len(array) - 1, loc=mean, scale=stats.sem(array))
    return Interval(mean, float(low), float(high))


def paired_test(gains: Floats) -> PairedTest:
    """Tests whether gains on shared seeds are above 0.

    The p-value is 1 if the gains have no variance, because their noise is then unknown. It is also
    1 if a gain is not finite, because a failed run is never dropped.

    Args:
      gains: Baseline bpb minus candidate bpb on each seed; float[n].

    Returns:
      The result of the test.
    """
    array = np.asarray(gains, np.float64)
    n = len(array)
    if not n or not np.all(np.isfinite(array)):
        return PairedTest(-math.inf, math.nan, n, 1.0, -math.inf, math.inf)
    mean, low, high = mean_interval(array)
    if n < 2 or np.ptp(array) == 0:
        return PairedTest(mean, 0.0, n, 1.0, low, high)
    result = stats.ttest_1samp(array, 0.0, alternative="greater")
    return PairedTest(mean, float(array.std(ddof=1)), n, float(result.pvalue), low, high)


class SeedNoise(NamedTuple):
    """The noise of the final bpb over seeds."""

    sigma: float  # standard deviation of the baseline, in bpb
    sigma_low: float  # lower end of the 95 % confidence interval of sigma
    sigma_high: float  # upper end of that interval
    correlation: float  # correlation of two arms on shared seeds
    paired_sigma: float  # standard deviation of their difference, in bpb


def seed_noise(baseline: Floats, other: Floats) -> SeedNoise:
    """Returns the noise of the baseline and of its difference from a close variant.

    Args:
      baseline: Bits per byte of the baseline; float[n].
      other: Bits per byte of the variant on the same seeds; float[n].

    Returns:
      The noise over seeds.

    Raises:
      EvidenceError: If a run is not finite.
    """
    a, b = np.asarray(baseline, np.float64), np.asarray(other, np.float64)
    if not (np.all(np.isfinite(a)) and np.all(np.isfinite(b))):
        raise EvidenceError(
            "a run of the baseline or of its variant failed, so the noise cannot be measured; "
            "choose a config.recipe at which both train on every seed"
        )
    freedom = len(a) - 1
    sigma = float(a.std(ddof=1))
    scale = [math.sqrt(freedom / stats.chi2.ppf(q, freedom)) for q in (0.975, 0.025)]
    return SeedNoise(
        sigma=sigma,
        sigma_low=sigma * scale[0],
        sigma_high=sigma * scale[1],
        correlation=float(stats.pearsonr(a, b).statistic),
        paired_sigma=float((a - b).std(ddof=1)),
    )


def _worst_if_failed(bpb: Floats) -> np.ndarray:
    array = np.asarray(bpb, np.float64)
    return np.where(np.isfinite(array), array, np.inf)


def auc(good: Floats, bad: Floats) -> float:
    """Returns the probability that a good spec has a lower bpb than a bad one (AUC).

    Args:
      good: Bits per byte of good specs; float[m]. Failed runs are worse than all others.
      bad: Bits per byte of bad specs; float[n].

    Returns:
      Share of the pairs of a good and a bad spec in which the good one is lower. Ties count half.
    """
    ranks = stats.rankdata(np.concatenate([_worst_if_failed(good), _worst_if_failed(bad)]))
    first, second = ranks[: len(good)], ranks[len(good) :]
    losses = stats.mannwhitneyu(first, second).statistic  # pairs in which the good spec is higher
    return float(1.0 - losses / (len(first) * len(second)))


def kendall_tau(a: Floats, b: Floats) -> float:
    """Returns Kendall's tau-b between two rankings.

    Args:
      a: Bits per byte; float[n]. Failed runs are tied for the last place.
      b: Bits per byte of the same specs; float[n].

    Returns:
      Rank correlation in [-1, 1].
    """
    ranks = [stats.rankdata(_worst_if_failed(x)) for x in (a, b)]
    return float(stats.kendalltau(*ranks).statistic)


_ABOUT = 2  # number of points on either side of the best one that are fitted


class LrFit(NamedTuple):
    """The best learning rate of a sweep."""

    factor: float  # best factor
    edge: str | None  # 'low' or 'high' if the best factor may lie beyond that end of the range


def fit_lr(factors: Floats, losses: np.ndarray) -> LrFit | None:
    """Fits a parabola to the mean loss over log2(factor), using up to five points around the best.

    The best learning rate is at an edge of the range if the vertex of the parabola is at that edge
    or beyond, or if the best point is at the edge. The edge is not reported if the factors there
    have failed runs.

    Args:
      factors: Ascending factors; float[points].
      losses: Losses; float[points, seeds]. A factor with a failed run is left out.

    Returns:
      The vertex if it lies between the neighbours of the best point. Otherwise the best point,
      because the vertex can be at a maximum between two minima. None if every factor has a failed
      run.
    """
    mean = np.asarray(losses, np.float64).mean(1)
    finite = np.flatnonzero(np.isfinite(mean))
    if not len(finite):
        return None
    x, y = np.log2(np.asarray(factors, np.float64)[finite]), mean[finite]
    at = int(np.argmin(y))
    about = slice(max(at - _ABOUT, 0), at + _ABOUT + 1)
    vertex = x[at]
    if len(x[about]) >= 3:
        a, b, _ = np.polyfit(x[about], y[about], 2)
        vertex = -b / (2 * a) if a > 0 else x[at]

    def edge(place: float) -> str | None:
        if place <= x[0] and finite[0] == 0:
            return "low"
        return "high" if place >= x[-1] and finite[-1] == len(factors) - 1 else None

    between = x[max(at - 1, 0)] <= vertex <= x[min(at + 1, len(x) - 1)]
    return LrFit(float(2.0 ** (vertex if between else x[at])), edge(vertex) or edge(x[at]))
