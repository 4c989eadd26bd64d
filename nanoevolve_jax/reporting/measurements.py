"""Measurements behind the figures: validation curves, gains by stage, noise, drive and placebos."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nanoevolve_jax.evidence.confirmation import minimum_detectable_effect, rules_of
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.runs import Run
from nanoevolve_jax.evidence.statistics import Interval, mean_interval
from nanoevolve_jax.evolution import tournament
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.policy.spec import OptimizerSpec, Sensors
from nanoevolve_jax.reporting.history import History
from nanoevolve_jax.reporting.summary import gains, main_card

SCREENING, PROMOTION, CONFIRMATION = "screening", "promotion", "confirmation"


def subject(history: History) -> Record:
    """Returns the policy that the report is about.

    This is the policy of the verdict, or the next best one if that is the baseline. It is the
    baseline only if every other policy failed.
    """
    card = main_card(history)
    if card is not None:
        return history.record(card["id"])
    others = [record for record in history.records if record.id != tournament.BASELINE_ID]
    best = tournament.survivors(others, 1)
    if history.chosen.id != tournament.BASELINE_ID or not best:
        return history.chosen
    return best[0]


# Validation curves -------------------------------------------------------------------------


class Curves(NamedTuple):
    """Validation curves of several arms on shared seeds."""

    stage: str  # stage that trained the runs
    steps: np.ndarray  # int64[points]
    arms: dict[str, np.ndarray]  # bpb by id, float64[seeds, points]; baseline first, subject last
    reference: str  # id of the arm that the subject is compared with


def curves(history: History, record: Record) -> Curves | None:
    """Returns the curves of the latest stage: confirmation, promotion or screening.

    A seed on which an arm failed is left out of all arms. Returns None without telemetry.
    """
    return _confirmed(history, record) or _promoted(history, record) or _screened(history, record)


def _confirmed(history: History, record: Record) -> Curves | None:
    card = history.cards.get(record.id)
    if card is None:
        return None
    reference = card["baseline"]["id"]
    runs = {
        reference: history.tested_runs(card, "baseline"),
        record.id: history.tested_runs(card, "winner"),
    }
    return _shared(CONFIRMATION, runs, reference)


def _promoted(history: History, record: Record) -> Curves | None:
    if history.promotion is None:
        return None
    reference = history.record(history.promotion["comparator"])
    arms = {r.id: history.runs_of(r) for r in (history.baseline, reference, record)}
    return _shared(PROMOTION, arms, reference.id)


def _shared(stage: str, runs: Mapping[str, Sequence[Run]], reference: str) -> Curves | None:
    by_seed = {
        name: {run.job["seed"]: run for run in own if run.failure is None}
        for name, own in runs.items()
    }
    first = next(iter(by_seed.values()))
    seeds = [seed for seed in first if all(seed in own for own in by_seed.values())]
    if not seeds or len(by_seed) < 2:
        return None
    shared = [own[seed].curve for own in by_seed.values() for seed in seeds]
    validated = {tuple(step for step, _ in curve) for curve in shared}
    if len(validated) != 1 or () in validated:
        raise EvidenceError(f"the runs of a {stage} must be validated at the same steps")
    arms = {
        name: np.array([own[seed].curve for seed in seeds], np.float64)[:, :, 1]
        for name, own in by_seed.items()
    }
    return Curves(stage, np.array(validated.pop(), np.int64), arms, reference)


def _screened(history: History, record: Record) -> Curves | None:
    telemetry = {}
    for name in dict.fromkeys((history.baseline.id, record.id)):
        columns = history.telemetry(name)
        if columns is None:
            return None
        telemetry[name] = columns
    steps = [columns["validation_step"] for columns in telemetry.values()]
    shared = min(map(len, steps))  # a failed run has fewer
    arms = {name: x["validation_bpb"][None, :shared] for name, x in telemetry.items()}
    return Curves(SCREENING, steps[0][:shared], arms, history.baseline.id)


def band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the mean over seeds and its 95 % interval at each point.

    Args:
      values: Values by seed, float[seeds, points].

    Returns:
      (mean, low, high), each float64[points]; all equal if there is one seed.
    """
    points = [mean_interval(column) for column in np.asarray(values, np.float64).T]
    mean, low, high = (np.array(part) for part in zip(*points, strict=True))
    return mean, low, high


# Gains and noise ---------------------------------------------------------------------------


class Gain(NamedTuple):
    """Gain of a policy at one stage, in bpb."""

    stage: str
    against: str  # id of the policy it is compared with
    seeds: int
    steps: int
    gain: Interval  # confidence interval of the mean; no width with a single seed
    sigma: float | None  # between seeds at this horizon; None without a calibration


def stage_gains(history: History, record: Record) -> list[Gain]:
    """Returns the gains at the stages that a policy has reached, in their order."""
    noise = history.calibration and history.calibration["noise"]
    screen = noise["screen"]["sigma"] if noise else None
    promotion, steps = history.promotion, history.config.train.steps
    reference = history.record(promotion["comparator"]) if promotion else history.baseline
    first = history.baseline.merit.val_bpb - record.merit.val_bpb
    stages = []
    if math.isfinite(first):
        interval = Interval(first, first, first)
        stages.append(Gain(SCREENING, history.baseline.id, 1, steps, interval, screen))
    fresh = [gain for gain in gains(record, reference)[1:] if math.isfinite(gain)]
    if fresh:
        interval = mean_interval(fresh)
        stages.append(Gain(PROMOTION, reference.id, len(fresh), steps, interval, screen))
    card = history.cards.get(record.id)
    test = card and card["confirmation"] and card["confirmation"]["test"]
    if card and test and test["mean"] is not None:
        stages.append(
            Gain(
                CONFIRMATION,
                card["baseline"]["id"],
                test["n"],
                card["config"]["confirm"]["steps"],
                Interval(test["mean"], test["low"], test["high"]),
                card["calibration"]["sigma"],
            )
        )
    return stages


class DetectableGain(NamedTuple):
    """Smallest true gain that a confirmation detects with probability 0.8, in bpb."""

    paired: float  # if the two arms vary together, as two runs with the same seed do
    independent: float  # if the two arms vary independently, as runs with different seeds do


def detectable_gain(history: History) -> DetectableGain | None:
    """Returns the minimum detectable effect of a confirmation, or None without a calibration."""
    if history.calibration is None:
        return None
    full = history.calibration["noise"]["full"]
    rules = rules_of(history.config, history.config.confirm.max)
    sigma = full["sigma"]
    paired, independent = full["paired_sigma"], math.sqrt(2.0) * full["sigma_high"]
    return DetectableGain(
        sigma * minimum_detectable_effect(paired / sigma, rules),
        sigma * minimum_detectable_effect(independent / sigma, rules),
    )


# What drives the gate ----------------------------------------------------------------------


def drive_terms(
    columns: Sequence[Mapping[str, np.ndarray]], spec: OptimizerSpec
) -> dict[str, np.ndarray]:
    """Returns what each sensor adds to the gate's drive: weight times sensor, mean over runs.

    Sensors without a weight are left out.

    Returns:
      float64[steps] by sensor.
    """
    weights = spec.control.coefficients._asdict()
    return {
        name: weights[name] * np.mean([run[name] for run in columns], axis=0, dtype=np.float64)
        for name in Sensors._fields
        if weights[name] != 0
    }


def share_intervals(shares: Sequence[Mapping[str, float]]) -> dict[str, Interval]:
    """Returns each sensor's share of the drive over runs, the largest first.

    Args:
      shares: Result of `attribution.drive_shares` for each run.
    """
    names = {name for run in shares for name, share in run.items() if share}
    means = {name: mean_interval([run[name] for run in shares]) for name in names}
    return dict(sorted(means.items(), key=lambda item: (-abs(item[1].mean), item[0])))


# Placebos ----------------------------------------------------------------------------------


def placebo_gains(attribution: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns gains over the baseline, float64[seeds], of the policy and of each placebo.

    NaN marks a failed run.
    """
    bpb = dict(attribution["bpb"])
    constants = bpb.pop("constants")
    arms = {
        "the policy itself": bpb["winner"],
        "its mean trajectory, replayed": bpb["schedule"],
        "another seed's trajectory": bpb["yoked"],
    }
    arms |= {f"constant gate: {name}": values for name, values in constants.items()}
    baseline = _floats(bpb["baseline"])
    return {name: baseline - _floats(values) for name, values in arms.items()}


def perturbation_gains(panel: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """Returns gains over the baseline, float64[seeds], by arm and perturbation.

    NaN marks a failed run.
    """
    bpb = {name: _floats(values) for name, values in panel["bpb"].items()}
    names = panel["perturbations"]
    return {
        arm: dict(zip(names, (bpb["baseline"] - bpb[arm]).T, strict=True))
        for arm in ("winner", "schedule")
    }


def _floats(values: Any) -> np.ndarray:
    return np.array(values, np.float64)  # None, which marks a failed run, becomes NaN
