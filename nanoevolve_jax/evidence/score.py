"""The score of a candidate, the Pareto front, and who is promoted by score."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

_SMOOTHING = 0.9  # of the training loss, before its rises are measured


class Merit(NamedTuple):
    """The three objectives of a candidate; all are better when smaller."""

    val_bpb: float
    cost: float  # FLOPs a training step
    instability: float  # nats


class Scale(NamedTuple):
    """The units of a score, as a calibration measures them."""

    sigma: float  # bpb, between seeds of the baseline
    shrinkage: float  # variance of one gain, in sigma squared
    horizon_slope: float  # bpb that a run gains for one unit of ln(horizon)


def instability(losses: np.ndarray) -> float:
    """Largest rise of the smoothed training loss above its lowest value so far, in nats.

    Args:
      losses: float[steps], all finite.
    """
    smooth, lowest, rise = float(losses[0]), float(losses[0]), 0.0
    for loss in losses[1:]:
        smooth = _SMOOTHING * smooth + (1.0 - _SMOOTHING) * float(loss)
        lowest = min(lowest, smooth)
        rise = max(rise, smooth - lowest)
    return rise


def extra_cost(cost: float, baseline_cost: float, scale: Scale) -> float:
    """What the baseline would have gained from the compute a candidate takes more, in sigmas.

    Longer runs are the other thing compute buys, so cost needs no weight of its own. Savings
    earn nothing.
    """
    return scale.horizon_slope / scale.sigma * max(0.0, math.log(cost / baseline_cost))


def score(gains: Sequence[float], cost: float, baseline_cost: float, scale: Scale) -> float:
    """Mean gain over the baseline, shrunk for the runs it rests on, less what it cost.

    Args:
      gains: baseline bpb minus candidate bpb, one a seed.
      cost: FLOPs of the candidate's step.
      baseline_cost: FLOPs of the baseline's step.
      scale: of the evaluation.

    Returns:
      Sigmas; -inf if any run is not finite.
    """
    if not gains or not all(math.isfinite(gain) for gain in gains):
        return -math.inf
    count = len(gains)
    shrunken = sum(gains) / (count + scale.shrinkage)  # n / (n + lambda) times the mean
    return shrunken / scale.sigma - extra_cost(cost, baseline_cost, scale)


def pareto_front(merits: dict[str, Merit]) -> list[str]:
    """Ids of the candidates no other one is at least as good as everywhere, better somewhere."""
    finite = {k: m for k, m in merits.items() if all(math.isfinite(x) for x in m)}

    def dominated(merit):
        return any(
            other != merit and all(o <= m for o, m in zip(other, merit, strict=True))
            for other in finite.values()
        )

    return [name for name, merit in finite.items() if not dominated(merit)]


# Promotion


class PromotionRules(NamedTuple):
    """How many go how far."""

    first: int = 12  # candidates of the first round
    first_seeds: int = 3  # fresh seeds each
    final: int = 4  # candidates of the second round
    final_seeds: int = 6  # further fresh seeds each


def best(scores: Mapping[str, float], count: int) -> list[str]:
    """The `count` best ids that did not fail, best first; ties go to the one listed first.

    Args:
      scores: shrunken scores over all seeds of each candidate, see `score.score`; -inf where any
        run failed.
      count: at most so many.
    """
    alive = [name for name, score in scores.items() if score > float("-inf")]
    return sorted(alive, key=lambda name: -scores[name])[:count]


def first_round(scores: Mapping[str, float], rules: PromotionRules) -> list[str]:
    """Who gets the first fresh seeds, by screening score."""
    return best(scores, rules.first)


def second_round(scores: Mapping[str, float], rules: PromotionRules) -> list[str]:
    """Who gets the rest, by the scores over screening and first-round seeds."""
    return best(scores, rules.final)


def pick(scores: Mapping[str, float]) -> str | None:
    """Who goes on to confirmation, by the scores over all seeds; None if every finalist failed."""
    return next(iter(best(scores, 1)), None)
