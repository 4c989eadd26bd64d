"""What a candidate is worth: one score, and a Pareto front. No wall-clock in either."""

import math
from collections.abc import Sequence
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
