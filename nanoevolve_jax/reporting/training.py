"""What training looked like, seed by seed: validation curves, gains at every stage, the drive."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nanoevolve_jax.evidence.confirmation import minimum_detectable_effect
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.runs import Run
from nanoevolve_jax.evidence.statistics import Interval, mean_interval
from nanoevolve_jax.evidence.trial import rules_of
from nanoevolve_jax.evolution import tournament
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.policy.spec import OptimizerSpec, Sensors
from nanoevolve_jax.reporting.history import History
from nanoevolve_jax.reporting.words import gains, telling_card

SCREENING, PROMOTION, CONFIRMATION = "screening", "promotion", "confirmation"


def subject(history: History) -> Record:
    """The policy a reader wants to see: the one the verdict is about.

    Where that is the baseline, the next best; it is the baseline if there is no other that lives.
    """
    card = telling_card(history)
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

    stage: str  # where they are from
    steps: np.ndarray  # int64[points]
    arms: dict[str, np.ndarray]  # float64[seeds, points] by id, bpb; the baseline first
    reference: str  # the arm that the subject, the last one, is compared with


def curves(history: History, record: Record) -> Curves | None:
    """The curves that rest on most: of the confirmation, of promotion, or of the screening run.

    Seeds on which an arm failed are left out of all arms. None: no telemetry was kept.
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
    found = {
        name: np.array([own[seed].curve for seed in seeds], np.float64)[:, :, 1]
        for name, own in by_seed.items()
    }
    return Curves(stage, np.array(validated.pop(), np.int64), found, reference)


def _screened(history: History, record: Record) -> Curves | None:
    names = dict.fromkeys((history.baseline.id, record.id))
    found = {name: history.telemetry(name) for name in names}
    if any(columns is None for columns in found.values()):
        return None
    steps = [columns["validation_step"] for columns in found.values()]
    shared = min(map(len, steps))  # a run that failed has fewer
    arms = {name: x["validation_bpb"][None, :shared] for name, x in found.items()}
    return Curves(SCREENING, steps[0][:shared], arms, history.baseline.id)


def band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean, low, high) over seeds, 95 % interval of the mean; each float64[points].

    Args:
      values: float[seeds, points]; with one seed the band has no width.
    """
    points = [mean_interval(column) for column in np.asarray(values, np.float64).T]
    return tuple(np.array(part) for part in zip(*points, strict=True))


# Gains and noise ---------------------------------------------------------------------------


class Gain(NamedTuple):
    """What a policy gained at one stage, in bpb."""

    stage: str
    against: str
    seeds: int
    steps: int
    gain: Interval  # of the mean; with one seed it has no width
    sigma: float | None  # between seeds at this horizon; None: without a calibration


def stage_gains(history: History, record: Record) -> list[Gain]:
    """The policy's gain at screening, promotion and confirmation, as far as it has come."""
    noise = history.calibration and history.calibration["noise"]
    screen = noise and noise["screen"]["sigma"]
    promotion, steps = history.promotion, history.config.train.steps
    reference = history.record(promotion["comparator"]) if promotion else history.baseline
    first = history.baseline.merit.val_bpb - record.merit.val_bpb
    found = []
    if math.isfinite(first):
        baseline = history.baseline.id
        found.append(Gain(SCREENING, baseline, 1, steps, Interval(*[first] * 3), screen))
    fresh = [gain for gain in gains(record, reference)[1:] if math.isfinite(gain)]
    if fresh:
        mean = mean_interval(fresh)
        found.append(Gain(PROMOTION, reference.id, len(fresh), steps, mean, screen))
    card = history.cards.get(record.id)
    test = card and card["confirmation"] and card["confirmation"]["test"]
    if test and test["mean"] is not None:
        found.append(
            Gain(
                CONFIRMATION,
                card["baseline"]["id"],
                test["n"],
                card["config"]["confirm"]["steps"],
                Interval(test["mean"], test["low"], test["high"]),
                card["calibration"]["sigma"],
            )
        )
    return found


class Detectable(NamedTuple):
    """The smallest true gain that a confirmation finds with probability 0.8, in bpb."""

    twins: float  # if the arms of a pair scatter like twins that share a seed
    strangers: float  # if they scatter like runs of different seeds


def detectable(history: History) -> Detectable | None:
    """The minimum detectable effect of a confirmation; None without a calibration."""
    if history.calibration is None:
        return None
    full, rules = (
        history.calibration["noise"]["full"],
        rules_of(history.config, history.config.confirm.max),
    )
    sigma, high = full["sigma"], full["sigma_high"]
    scatter = (full["paired_sigma"], math.sqrt(2.0) * high)  # as `trial.say_power` has them
    return Detectable(*(sigma * minimum_detectable_effect(x / sigma, rules) for x in scatter))


# What drives the gate ----------------------------------------------------------------------


def drive_terms(
    columns: Sequence[Mapping[str, np.ndarray]], spec: OptimizerSpec
) -> dict[str, np.ndarray]:
    """What each sensor adds to the gate's drive: weight times sensor, a mean over runs.

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


def shares(found: Sequence[Mapping[str, float]]) -> dict[str, Interval]:
    """Every sensor's share of the drive, over runs; the largest first.

    Args:
      found: `attribution.drive_shares` of each run.
    """
    names = {name for share in found for name, x in share.items() if x}
    means = {name: mean_interval([share[name] for share in found]) for name in names}
    return dict(sorted(means.items(), key=lambda item: (-abs(item[1].mean), item[0])))


# Placebos ----------------------------------------------------------------------------------


def placebo_gains(attribution: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Gains over the baseline of the policy and of every placebo, float64[seeds]; NaN: failed."""
    bpb = dict(attribution["bpb"])
    constants = bpb.pop("constants")
    arms = {"the policy itself": bpb["winner"]}
    arms |= {"its mean trajectory, replayed": bpb["schedule"]}
    arms |= {"another seed's trajectory": bpb["yoked"]}
    arms |= {f"held: {name}": values for name, values in constants.items()}
    baseline = _floats(bpb["baseline"])
    return {name: baseline - _floats(values) for name, values in arms.items()}


def panel_gains(panel: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """Gains over the baseline by arm and perturbation, float64[seeds]; NaN: failed."""
    bpb = {name: _floats(values) for name, values in panel["bpb"].items()}
    names = panel["perturbations"]
    return {
        arm: dict(zip(names, (bpb["baseline"] - bpb[arm]).T, strict=True))
        for arm in ("winner", "schedule")
    }


def _floats(values: Any) -> np.ndarray:
    """Nested lists with null for failed runs as float64."""
    return np.array(values, np.float64)  # None becomes NaN
