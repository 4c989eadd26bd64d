"""The score of a candidate, the Pareto front, and who is promoted by score."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

_SMOOTHING = 0.9  # decay of the training loss's average, whose rises are measured


class Merit(NamedTuple):
    """The three objectives of a candidate; smaller is better for all of them."""

    val_bpb: float
    cost: float  # FLOPs per training step
    instability: float  # nats


class Scale(NamedTuple):
    """The units of a score, which a calibration measures."""

    sigma: float  # bpb, between seeds of the baseline
    shrinkage: float  # variance of one gain, in sigma squared
    horizon_slope: float  # bpb that a run gains per unit of ln(horizon)


def instability(losses: np.ndarray) -> float:
    """Returns the largest rise of the smoothed loss above its lowest value so far, in nats.

    Args:
      losses: Training losses, float[steps], all finite.
    """
    smooth, lowest, rise = float(losses[0]), float(losses[0]), 0.0
    for loss in losses[1:]:
        smooth = _SMOOTHING * smooth + (1.0 - _SMOOTHING) * float(loss)
        lowest = min(lowest, smooth)
        rise = max(rise, smooth - lowest)
    return rise


def extra_cost(cost: float, baseline_cost: float, scale: Scale) -> float:
    """Returns what the baseline would gain from a candidate's additional compute, in sigmas.

    The compute could be spent on longer runs instead, so cost does not need a weight of its own.
    Savings are not rewarded.
    """
    return scale.horizon_slope / scale.sigma * max(0.0, math.log(cost / baseline_cost))


def score(gains: Sequence[float], cost: float, baseline_cost: float, scale: Scale) -> float:
    """Returns the mean gain over the baseline in sigmas, shrunk for few runs, minus its cost.

    Args:
      gains: Baseline bpb minus candidate bpb on each seed.
      cost: FLOPs of the candidate's step.
      baseline_cost: FLOPs of the baseline's step.
      scale: Units of the evaluation.

    Returns:
      Sigmas; -inf if any run is not finite.
    """
    if not gains or not all(math.isfinite(gain) for gain in gains):
        return -math.inf
    count = len(gains)
    shrunken = sum(gains) / (count + scale.shrinkage)  # n / (n + lambda) times the mean
    return shrunken / scale.sigma - extra_cost(cost, baseline_cost, scale)


def pareto_front(merits: dict[str, Merit]) -> list[str]:
    """Returns the ids of the candidates that no other candidate dominates.

    A candidate dominates another if it is at least as good in all objectives and better in one.
    """
    finite = {k: m for k, m in merits.items() if all(math.isfinite(x) for x in m)}

    def dominated(merit):
        return any(
            other != merit and all(o <= m for o, m in zip(other, merit, strict=True))
            for other in finite.values()
        )

    return [name for name, merit in finite.items() if not dominated(merit)]


# Promotion picks one candidate, on fresh seeds; it does not test ----------------------------


class PromotionRules(NamedTuple):
    """How many candidates get how many fresh seeds."""

    first: int = 12  # candidates in the first round
    first_seeds: int = 3  # fresh seeds per candidate
    final: int = 4  # candidates in the second round
    final_seeds: int = 6  # further fresh seeds per candidate


def best(scores: Mapping[str, float], count: int) -> list[str]:
    """Returns the ids with the best scores, best first; ties keep their order.

    Args:
      scores: Score of each candidate over all its seeds, see `score`; -inf if any run failed.
      count: Largest number of ids; candidates with a failed run are left out.
    """
    alive = [name for name, score in scores.items() if score > float("-inf")]
    return sorted(alive, key=lambda name: -scores[name])[:count]


def first_round(scores: Mapping[str, float], rules: PromotionRules) -> list[str]:
    """Returns the ids that get the first fresh seeds, by screening score."""
    return best(scores, rules.first)


def second_round(scores: Mapping[str, float], rules: PromotionRules) -> list[str]:
    """Returns the ids that get the other fresh seeds, by score over the seeds so far."""
    return best(scores, rules.final)


def pick(scores: Mapping[str, float]) -> str | None:
    """Returns the id to confirm, by score over all seeds; None if every finalist failed."""
    return next(iter(best(scores, 1)), None)
