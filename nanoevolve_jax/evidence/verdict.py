"""What a gain comes from: sensing, a schedule, rewritten code, constants, or nothing at all."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from nanoevolve_jax.evidence.statistics import PairedTest, paired_test

P = 0.05
STRICT_P = 0.025
STEP_SHARE = 0.95  # of the gate's variance; above it only the panel can show sensing

NOT_CONFIRMED = "not distinguishable from the tuned baseline"
RETUNED = "a retuned baseline"
SENSING = "sensing"
SCHEDULE = "a schedule"
CONSTANTS = "better constants"
REWRITTEN = "rewritten functions"
UNRESOLVED = "gain, source unresolved"
NOT_ASKED = "gain, source not asked"


class Verdict(NamedTuple):
    """The label of a candidate, and what to release."""

    label: str
    release: str | None  # 'the policy', 'its mean trajectory', 'its best constants' or nothing
    contrasts: dict[str, PairedTest]


def best_constants(constants: Mapping[str, np.ndarray]) -> str:
    """The constants with the lowest mean bpb; those with a failed run come last."""
    mean = {name: float(np.mean(bpb)) for name, bpb in constants.items()}
    return min(mean, key=lambda name: mean[name] if np.isfinite(mean[name]) else np.inf)


def step_share(gates: np.ndarray) -> float:
    """Share of the gate's variance that the step alone explains; 1 for a gate that stands still.

    Args:
      gates: float[seeds, steps], one of them finite at least; NaN where a run failed, which says
        nothing of the gate.
    """
    gates = np.asarray(gates, np.float64)
    gates = gates[np.isfinite(gates).all(1)]
    total = gates.var()
    return float(gates.mean(0).var() / total) if total > 0 else 1.0


def _gain(worse: np.ndarray, better: np.ndarray) -> PairedTest:
    """Tests `better` against `worse`.

    A failed run of `worse` is no evidence for `better` and is left out; one of `better` is held
    against it, whatever became of `worse`.
    """
    usable = np.isfinite(worse) | ~np.isfinite(better)
    return paired_test(worse[usable] - better[usable])


def judge(
    *,
    confirmed: bool,
    retuned: bool = False,
    baseline: np.ndarray | None = None,
    winner: np.ndarray | None = None,
    constants: Mapping[str, np.ndarray] | None = None,
    schedule: np.ndarray | None = None,
    yoked: np.ndarray | None = None,
    built_in: np.ndarray | None = None,
    panel: Mapping[str, np.ndarray] | None = None,
) -> Verdict:
    """Names what a gain comes from.

    Args:
      confirmed: whether confirmation was a win; without one nothing else is read.
      retuned: whether the policy is the baseline but for its recipe.
      baseline: float[seeds], bpb.
      winner: float[seeds].
      constants: float[seeds] by name; None if nothing was attributed yet.
      schedule: float[seeds], the mean trajectory replayed.
      yoked: float[seeds], another seed's trajectory replayed.
      built_in: float[seeds], its spec with the built-in functions; None: nothing is rewritten.
      panel: means over perturbations, float[seeds], of `winner`, `schedule` and `baseline`.
    """
    if retuned:
        return Verdict(RETUNED, None, {})
    if not confirmed:
        return Verdict(NOT_CONFIRMED, None, {})
    if constants is None:  # what to release is what attribution would have said
        return Verdict(NOT_ASKED, None, {})
    constant = constants[best_constants(constants)]
    contrasts = {
        "winner over constants": _gain(constant, winner),
        "winner over schedule": _gain(schedule, winner),
        "winner over yoked": _gain(yoked, winner),
        "schedule over baseline": _gain(baseline, schedule),
        "constants over baseline": _gain(baseline, constant),
    }
    if built_in is not None:
        contrasts["winner over built-in functions"] = _gain(built_in, winner)
    if panel is not None:
        contrasts["winner over schedule in the panel"] = _gain(panel["schedule"], panel["winner"])
        contrasts["winner over baseline in the panel"] = _gain(panel["baseline"], panel["winner"])

    def beats(name: str, p: float = P) -> bool:
        test = contrasts.get(name)
        return test is not None and test.mean > 0 and test.p <= p

    placebos = ("constants", "schedule", "yoked")
    outright = all(beats(f"winner over {name}", STRICT_P) for name in placebos)
    perturbed = beats("winner over schedule in the panel", STRICT_P) and beats(
        "winner over baseline in the panel"
    )
    if outright or perturbed:
        return Verdict(SENSING, "the policy", contrasts)
    if beats("schedule over baseline") and beats("winner over constants"):
        return Verdict(SCHEDULE, "its mean trajectory", contrasts)
    if beats("winner over built-in functions", STRICT_P):
        return Verdict(REWRITTEN, "the policy", contrasts)
    if beats("constants over baseline"):
        return Verdict(CONSTANTS, "its best constants", contrasts)
    if beats("schedule over baseline"):
        return Verdict(SCHEDULE, "its mean trajectory", contrasts)
    survives = bool(np.all(np.isfinite(winner)))
    return Verdict(UNRESOLVED, "the policy" if survives else None, contrasts)
