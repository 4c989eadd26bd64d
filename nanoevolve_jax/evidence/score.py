"""What a screening run is worth: one score, and a Pareto front. No wall-clock in either."""

import math
from typing import NamedTuple

import numpy as np

_SMOOTHING = 0.9  # of the training loss, before its rises are measured


class Merit(NamedTuple):
    """The three objectives of a candidate; all are better when smaller."""

    val_bpb: float
    cost: float  # FLOPs a training step
    instability: float  # nats


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


def score(merit: Merit, baseline: Merit, *, cost_weight: float, stability_weight: float) -> float:
    """Gain over the baseline in bits per byte, less what it cost and how it shook.

    Args:
      merit: of the candidate.
      baseline: of the baseline, trained on the same seed.
      cost_weight: bpb for one unit of ln(cost / baseline cost); savings earn nothing.
      stability_weight: bpb for one nat of instability beyond the baseline's.

    Returns:
      The score, 0 for the baseline; -inf if anything is not finite.
    """
    if not all(math.isfinite(x) for x in merit):
        return -math.inf
    gain = baseline.val_bpb - merit.val_bpb
    dearer = max(0.0, math.log(merit.cost / baseline.cost))
    shakier = max(0.0, merit.instability - baseline.instability)
    return gain - cost_weight * dearer - stability_weight * shakier


def pareto_front(merits: dict[str, Merit]) -> list[str]:
    """Ids of the candidates no other one is at least as good as everywhere, better somewhere."""
    finite = {k: m for k, m in merits.items() if all(math.isfinite(x) for x in m)}

    def dominated(merit):
        return any(
            other != merit and all(o <= m for o, m in zip(other, merit, strict=True))
            for other in finite.values()
        )

    return [name for name, merit in finite.items() if not dominated(merit)]
