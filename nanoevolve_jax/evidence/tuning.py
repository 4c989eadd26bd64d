"""Tuning of the baseline's recipe, so that no candidate wins only by being better tuned.

Optuna's TPE sampler proposes points in batches. If the best point lies at an edge of a range, the
range is widened. The best of many noisy runs is mostly chance, so the search only produces a
shortlist, which is run again on fresh seeds.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.statistics import Floats

Point = dict[str, float]
_EDGE = 0.05  # share of a range at each end that is treated as its edge
_CENTROID = 5  # number of best points that are averaged


class Dimension(NamedTuple):
    """A quantity to tune and its range."""

    name: str
    low: float  # lower end of the range
    high: float  # upper end of the range
    hard_low: float  # bound below which the range is not widened
    hard_high: float  # bound above which the range is not widened
    log: bool  # whether the scale is logarithmic

    def to_unit(self, value: float) -> float:
        """Returns the position of a value in the range, from 0 to 1, on the dimension's scale."""
        low, high, value = (self._scaled(x) for x in (self.low, self.high, value))
        return (value - low) / (high - low)

    def from_unit(self, place: float) -> float:
        """Returns the value at a position in the range, clipped to the hard bounds."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        value = low + place * (high - low)
        return min(max(math.exp(value) if self.log else value, self.hard_low), self.hard_high)

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.log else value

    def widened(self, best: float) -> "Dimension":
        """Returns the dimension, with its range extended by half if `best` lies at an edge."""
        place = self.to_unit(best)
        if place < _EDGE:
            return self._replace(low=self.from_unit(-0.5))
        if place > 1.0 - _EDGE:
            return self._replace(high=self.from_unit(1.5))
        return self


def widened(dimensions: Sequence[Dimension], best: Point) -> tuple[Dimension, ...]:
    """Returns the dimensions, with a range widened if `best` lies at an edge of it.

    Args:
      dimensions: Quantities to tune.
      best: Best point so far.
    """
    return tuple(d.widened(best[d.name]) for d in dimensions)


def at_edge(dimensions: Sequence[Dimension], best: Point) -> list[str]:
    """Returns the names of the dimensions that `widened` would change.

    Args:
      dimensions: Quantities to tune.
      best: Best point so far.
    """
    pairs = zip(dimensions, widened(dimensions, best), strict=True)
    return [old.name for old, new in pairs if old != new]


class Tuning(NamedTuple):
    """The points that were tried and their results."""

    dimensions: tuple[Dimension, ...]  # quantities with their final ranges
    points: list[Point]
    bpb: list[float]  # validation bpb of the run of each point; NaN if it failed


def tune(
    evaluate: Callable[[list[Point]], Floats],
    dimensions: Sequence[Dimension],
    default: Point,
    *,
    runs: int,
    batch: int,
    seed: int,
    earlier: Tuning | None = None,
) -> Tuning:
    """Searches for the point with the lowest bpb.

    Args:
      evaluate: Function that returns the validation bpb of every point of a batch, NaN for failed
        runs.
      dimensions: Quantities to tune, with their initial ranges.
      default: Point that is tried first unless there are earlier points.
      runs: Number of training runs.
      batch: Number of points that are proposed together.
      seed: Seed of the sampler. The same seed proposes the same points.
      earlier: Earlier points from which the search continues, or None.

    Returns:
      All points that were tried, including `earlier`.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    study = optuna.create_study(sampler=sampler)
    tuning = Tuning(tuple(dimensions), [], [])
    if earlier is None:
        study.enqueue_trial(default)
    else:
        tuning = earlier._replace(dimensions=tuning.dimensions)
        study.add_trials(_as_trials(tuning))
    start = len(tuning.points)
    end = start + runs
    reviews = {start + max(1, runs * k // 4) for k in (1, 2, 3)}  # when to widen ranges
    while len(tuning.points) < end:
        count = min(batch, end - len(tuning.points))
        ranges = _distributions(tuning.dimensions)
        trials = [study.ask(ranges) for _ in range(count)]
        points = [dict(trial.params) for trial in trials]
        values = [float(value) for value in evaluate(points)]
        for trial, value in zip(trials, values, strict=True):
            if math.isfinite(value):
                study.tell(trial, value)
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
        before = len(tuning.points)
        tuning = Tuning(tuning.dimensions, tuning.points + points, tuning.bpb + values)
        reviewed = any(before < review <= len(tuning.points) for review in reviews)
        if reviewed and any(map(math.isfinite, tuning.bpb)):
            best = ranked(tuning)[0]
            tuning = tuning._replace(dimensions=widened(tuning.dimensions, best))
    return tuning


def _distributions(dimensions: Sequence[Dimension]) -> dict[str, FloatDistribution]:
    return {d.name: FloatDistribution(d.low, d.high, log=d.log) for d in dimensions}


def _as_trials(tuning: Tuning) -> list[optuna.trial.FrozenTrial]:
    """Returns the finite runs as trials of Optuna."""
    ranges = _distributions(tuning.dimensions)
    return [
        optuna.trial.create_trial(params=point, distributions=ranges, value=value)
        for point, value in zip(tuning.points, tuning.bpb, strict=True)
        if math.isfinite(value)
    ]


def ranked(tuning: Tuning) -> list[Point]:
    """Returns the points whose runs did not fail, best first.

    Args:
      tuning: Points that were tried.

    Raises:
      EvidenceError: If all runs failed.
    """
    pairs = zip(tuning.bpb, tuning.points, strict=True)
    finite = [(bpb, i, point) for i, (bpb, point) in enumerate(pairs) if math.isfinite(bpb)]
    if not finite:
        raise EvidenceError(
            f"all {len(tuning.points)} runs of the tuning failed; start from a config.recipe near "
            "which the baseline trains"
        )
    return [point for _, _, point in sorted(finite, key=lambda item: item[:2])]


def centroid(points: Sequence[Point], dimensions: Sequence[Dimension]) -> Point:
    """Returns the mean of points, computed on the scale of each dimension.

    Args:
      points: Points to average.
      dimensions: Quantities to tune.
    """
    return {
        d.name: d.from_unit(float(np.mean([d.to_unit(p[d.name]) for p in points])))
        for d in dimensions
    }


def surrogate_optimum(tuning: Tuning, seed: int) -> Point:
    """Returns the minimum of a Gaussian process that is fitted to all finite runs.

    Args:
      tuning: Points that were tried.
      seed: Seed of the fit and of the starting points of the minimisation.

    References:
      Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006.
    """
    dims = tuning.dimensions
    finite = [i for i, bpb in enumerate(tuning.bpb) if math.isfinite(bpb)]
    x = np.array([[d.to_unit(tuning.points[i][d.name]) for d in dims] for i in finite])
    # Clipping prevents a few diverging runs from determining the scale.
    y = np.array([tuning.bpb[i] for i in finite])
    y = np.minimum(y, np.median(y) + 3.0 * (np.median(y) - y.min()))
    kernel = ConstantKernel(1.0) * RBF(np.ones(len(dims)), (0.1, 30.0)) + WhiteKernel(
        0.1, (1e-4, 1.0)
    )
    with warnings.catch_warnings():
        # The length scale of a dimension with little effect is expected to reach its bound.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed).fit(x, y)
    rng = np.random.default_rng(seed)
    tried = np.vstack([x, rng.random((2048, len(dims)))])
    start = tried[np.argsort(model.predict(tried), kind="stable")[:4]]
    minima = [
        minimize(
            lambda u: float(model.predict(u[None])[0]),
            place,
            method="L-BFGS-B",
            bounds=[(0.0, 1.0)] * len(dims),
        )
        for place in np.clip(start, 0.0, 1.0)
    ]
    best = min(minima, key=lambda result: result.fun).x
    return {d.name: d.from_unit(float(u)) for d, u in zip(dims, best, strict=True)}


def shortlist(tuning: Tuning, default: Point, seed: int) -> dict[str, Point]:
    """Returns the points to run on fresh seeds.

    Args:
      tuning: Points that were tried.
      default: Point that represents the initial recipe.
      seed: Seed of the surrogate, see `surrogate_optimum`.

    Returns:
      Points by name.
    """
    best = ranked(tuning)
    return {
        "default": default,
        "best": best[0],
        "second": best[min(1, len(best) - 1)],
        "centroid": centroid(best[:_CENTROID], tuning.dimensions),
        "surrogate": surrogate_optimum(tuning, seed),
    }
