"""Scores of candidates, the Pareto front, and promotion by score."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

_SMOOTHING = 0.9  # decay of the average of the training loss


class Merit(NamedTuple):
    """The three objectives of a candidate; smaller is better for all of them."""

    val_bpb: float
    cost: float  # FLOPs per training step
    instability: float  # nats


class Scale(NamedTuple):
    """The units of a score, which a calibration measures."""

    sigma: float  # standard deviation of the baseline between seeds, in bpb
    shrinkage: float  # variance of the gain of a pair, in units of sigma squared
    horizon_slope: float  # decrease of the final bpb per unit of ln(horizon)


def instability(losses: np.ndarray) -> float:
    """Returns the largest rise of the smoothed loss above its lowest earlier value.

    Args:
      losses: Training losses, all of which are finite; float[steps].

    Returns:
      The rise, in nats.
    """
    smooth, lowest, rise = float(losses[0]), float(losses[0]), 0.0
    for loss in losses[1:]:
        smooth = _SMOOTHING * smooth + (1.0 - _SMOOTHING) * float(loss)
        lowest = min(lowest, smooth)
        rise = max(rise, smooth - lowest)
    return rise


def extra_cost(cost: float, baseline_cost: float, scale: Scale) -> float:
    """Returns the gain of the baseline from longer runs that cost as much as the candidate's.

    This measures additional compute in the units of a gain. Savings are not rewarded.

    Args:
      cost: FLOPs of a step of the candidate.
      baseline_cost: FLOPs of a step of the baseline.
      scale: Units of the evaluation.

    Returns:
      Gain in sigmas, at least 0.
    """
    return scale.horizon_slope / scale.sigma * max(0.0, math.log(cost / baseline_cost))


def score(gains: Sequence[float], cost: float, baseline_cost: float, scale: Scale) -> float:
    """Returns the score of a candidate: its shrunken mean gain minus its additional cost.

    Args:
      gains: Baseline bpb minus candidate bpb on each seed.
      cost: FLOPs of a step of the candidate.
      baseline_cost: FLOPs of a step of the baseline.
      scale: Units of the evaluation.

    Returns:
      Score in sigmas; -inf if there are no gains or any gain is not finite.
    """
    if not gains or not all(math.isfinite(gain) for gain in gains):
        return -math.inf
    count = len(gains)
    shrunken = sum(gains) / (count + scale.shrinkage)  # n / (n + lambda) times the mean
    return shrunken / scale.sigma - extra_cost(cost, baseline_cost, scale)


def pareto_front(merits: dict[str, Merit]) -> list[str]:
    """Returns the ids of the candidates that no other candidate dominates.

    A candidate dominates another if it is at least as good in all objectives and better in at least
    one.

    Args:
      merits: Objectives of each candidate by id. Candidates with an objective that is not finite
        are left out.
    """
    finite = {k: m for k, m in merits.items() if all(math.isfinite(x) for x in m)}

    def dominated(merit):
        return any(
            other != merit and all(o <= m for o, m in zip(other, merit, strict=True))
            for other in finite.values()
        )

    return [name for name, merit in finite.items() if not dominated(merit)]


# Promotion -----------------------------------------------------------------------------------


class PromotionRules(NamedTuple):
    """The numbers of candidates and seeds of promotion.

    Promotion picks a candidate on fresh seeds. It is not a test.
    """

    first: int = 12  # number of candidates in the first round
    first_seeds: int = 3  # number of fresh seeds per candidate
    final: int = 4  # number of candidates in the second round
    final_seeds: int = 6  # number of further fresh seeds per candidate


def best(scores: Mapping[str, float], count: int) -> list[str]:
    """Returns the ids of the candidates with the best scores.

    Args:
      scores: Score of each candidate over all its seeds, see `score`; -inf if any run failed.
      count: Maximum number of ids.

    Returns:
      Ids, best first. Ties keep their order, and candidates with a failed run are left out.
    """
    alive = [name for name, score in scores.items() if score > float("-inf")]
    return sorted(alive, key=lambda name: -scores[name])[:count]


def first_round(scores: Mapping[str, float], rules: PromotionRules) -> list[str]:
    """Returns the ids of the candidates in the first round.

    Args:
      scores: Screening scores by id.
      rules: Numbers of candidates and seeds.
    """
    return best(scores, rules.first)


def second_round(scores: Mapping[str, float], rules: PromotionRules) -> list[str]:
    """Returns the ids of the candidates in the second round.

    Args:
      scores: Scores after the first round by id.
      rules: Numbers of candidates and seeds.
    """
    return best(scores, rules.final)


def pick(scores: Mapping[str, float]) -> str | None:
    """Returns the id of the candidate to confirm, or None if every finalist failed.

    Args:
      scores: Scores of the finalists over all seeds by id.
    """
    return next(iter(best(scores, 1)), None)
