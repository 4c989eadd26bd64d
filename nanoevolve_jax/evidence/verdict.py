"""Labels for a gain: sensing, a schedule, rewritten functions, constants, or not resolved."""

import enum
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from nanoevolve_jax.evidence.statistics import PairedTest, paired_test

P = 0.05
STRICT_P = 0.025
STEP_SHARE = 0.95  # share of the gate's variance; above it only the panel can show sensing

SENSING = "sensing"
SCHEDULE = "a schedule"
CONSTANTS = "better constants"
REWRITTEN = "rewritten functions"
UNRESOLVED = "gain, source unresolved"


class Unattributed(enum.Enum):
    """Labels of candidates whose gain was not attributed, or that have no gain to attribute."""

    RETUNED = "a retuned baseline"
    NOT_CONFIRMED = "not distinguishable from the tuned baseline"
    NOT_ATTRIBUTED = "gain, source not asked"


class Panel(NamedTuple):
    """Results of the perturbation panel: mean bpb over perturbations, float[seeds], per arm."""

    winner: np.ndarray
    schedule: np.ndarray
    baseline: np.ndarray


class PlaceboEvidence(NamedTuple):
    """Results of a confirmed winner and its placebos on the same seeds, float[seeds], in bpb.

    Attributes:
      baseline: The tuned baseline.
      winner: The confirmed candidate.
      constants: The candidate with its gate held at a constant, by name of the constant.
      schedule: The candidate with its mean trajectory replayed.
      yoked: The candidate with the trajectory of another seed replayed.
      built_in: The candidate with built-in functions; None if it has no rewritten ones.
      panel: The perturbation panel; None if it was not run.
    """

    baseline: np.ndarray
    winner: np.ndarray
    constants: Mapping[str, np.ndarray]
    schedule: np.ndarray
    yoked: np.ndarray
    built_in: np.ndarray | None = None
    panel: Panel | None = None


class Verdict(NamedTuple):
    """The label of a candidate, and what to release."""

    label: str
    release: str | None  # 'the policy', 'its mean trajectory', 'its best constants' or None
    contrasts: dict[str, PairedTest]


def best_constants(constants: Mapping[str, np.ndarray]) -> str:
    """Returns the constants with the lowest mean bpb; constants with a failed run come last."""
    mean = {name: float(np.mean(bpb)) for name, bpb in constants.items()}
    return min(mean, key=lambda name: mean[name] if np.isfinite(mean[name]) else np.inf)


def step_share(gates: np.ndarray) -> float:
    """Returns the share of the gate's variance that the step explains; 1 if the gate is constant.

    Args:
      gates: Gate trajectories, float[seeds, steps]. Rows with NaN, which failed, are left out; at
        least one row must be finite.
    """
    gates = np.asarray(gates, np.float64)
    gates = gates[np.isfinite(gates).all(1)]
    total = gates.var()
    return float(gates.mean(0).var() / total) if total > 0 else 1.0


def _gain(worse: np.ndarray, better: np.ndarray) -> PairedTest:
    """Tests whether `better` has a lower bpb than `worse`.

    A pair in which only `worse` failed is left out: it is not evidence for `better`. A failed run
    of `better` always counts against it.
    """
    usable = np.isfinite(worse) | ~np.isfinite(better)
    return paired_test(worse[usable] - better[usable])


def _contrasts(evidence: PlaceboEvidence) -> dict[str, PairedTest]:
    """Returns the paired tests that decide the label, by name."""
    baseline, winner, schedule = evidence.baseline, evidence.winner, evidence.schedule
    constant = evidence.constants[best_constants(evidence.constants)]
    contrasts = {
        "winner over constants": _gain(constant, winner),
        "winner over schedule": _gain(schedule, winner),
        "winner over yoked": _gain(evidence.yoked, winner),
        "schedule over baseline": _gain(baseline, schedule),
        "constants over baseline": _gain(baseline, constant),
    }
    if evidence.built_in is not None:
        contrasts["winner over built-in functions"] = _gain(evidence.built_in, winner)
    if (panel := evidence.panel) is not None:
        contrasts["winner over schedule in the panel"] = _gain(panel.schedule, panel.winner)
        contrasts["winner over baseline in the panel"] = _gain(panel.baseline, panel.winner)
    return contrasts


def judge(evidence: PlaceboEvidence | Unattributed) -> Verdict:
    """Returns the label of a candidate and what to release, from what is known about its gain."""
    if isinstance(evidence, Unattributed):
        return Verdict(evidence.value, None, {})
    contrasts = _contrasts(evidence)

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
    survives = bool(np.all(np.isfinite(evidence.winner)))
    return Verdict(UNRESOLVED, "the policy" if survives else None, contrasts)
