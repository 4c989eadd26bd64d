"""Labels for the source of a gain, such as sensing, a schedule or better constants."""

import enum
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from nanoevolve_jax.evidence.statistics import PairedTest, paired_test

P = 0.05
STRICT_P = 0.025
STEP_SHARE = 0.95  # share of the gate's variance above which the perturbation panel is needed

SENSING = "sensing"
SCHEDULE = "a schedule"
CONSTANTS = "better constants"
REWRITTEN = "rewritten functions"
UNRESOLVED = "gain, source unresolved"


class Unattributed(enum.Enum):
    """Labels of candidates without a gain or without an attribution of their gain."""

    RETUNED = "a retuned baseline"
    NOT_CONFIRMED = "not distinguishable from the tuned baseline"
    NOT_ATTRIBUTED = "gain, source not asked"


class Panel(NamedTuple):
    """Results of the perturbation panel: mean bpb over perturbations, float[seeds] for each arm."""

    winner: np.ndarray
    schedule: np.ndarray
    baseline: np.ndarray


class PlaceboEvidence(NamedTuple):
    """Results of a confirmed winner and its placebos on the same seeds, in bpb.

    Attributes:
      baseline: Results of the tuned baseline; float[seeds].
      winner: Results of the confirmed candidate; float[seeds].
      constants: Results of the candidate with a constant gate, by name of the constant;
        float[seeds] each.
      schedule: Results of the candidate with its mean gate trajectory; float[seeds].
      yoked: Results of the candidate with the gate trajectory of another seed; float[seeds].
      built_in: Results of the candidate with built-in functions; float[seeds]. None if it has no
        rewritten functions.
      panel: Results of the perturbation panel. None if it was not run.
    """

    baseline: np.ndarray
    winner: np.ndarray
    constants: Mapping[str, np.ndarray]
    schedule: np.ndarray
    yoked: np.ndarray
    built_in: np.ndarray | None = None
    panel: Panel | None = None


class Verdict(NamedTuple):
    """The label of a candidate and the part of it to release."""

    label: str
    release: str | None  # 'the policy', 'its mean trajectory', 'its best constants' or None
    contrasts: dict[str, PairedTest]  # paired tests by name


def best_constants(constants: Mapping[str, np.ndarray]) -> str:
    """Returns the name of the constant with the lowest mean bpb.

    Args:
      constants: Results by name of the constant; float[seeds] each. Constants with a failed run
        rank last.
    """
    mean = {name: float(np.mean(bpb)) for name, bpb in constants.items()}
    return min(mean, key=lambda name: mean[name] if np.isfinite(mean[name]) else np.inf)


def step_share(gates: np.ndarray) -> float:
    """Returns the share of the gate's variance that the number of the step explains.

    Args:
      gates: Gate trajectories; float[seeds, steps]. Rows of failed runs contain NaN and are left
        out. At least one row must be finite.

    Returns:
      Share from 0 to 1; 1 if the gate is constant.
    """
    gates = np.asarray(gates, np.float64)
    gates = gates[np.isfinite(gates).all(1)]
    total = gates.var()
    return float(gates.mean(0).var() / total) if total > 0 else 1.0


def _gain(worse: np.ndarray, better: np.ndarray) -> PairedTest:
    """Tests whether `better` has a lower bpb than `worse`.

    A pair in which only `worse` failed is left out, because it is not evidence for `better`. A
    failed run of `better` always counts against it.
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
    """Returns the verdict on a candidate.

    Args:
      evidence: Results of the winner and its placebos, or the reason why there are none.

    Returns:
      The label, the part to release, and the tests on which the label is based.
    """
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
