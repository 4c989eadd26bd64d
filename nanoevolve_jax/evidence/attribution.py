"""Attribution of a win to sensing, a schedule, rewritten functions or better constants.

A placebo is the winner without its sensors. It uses the same compiled program, but its gate is a
constant, the mean trajectory of the winner, or the trajectory of another seed. The perturbation
panel compares the arms under events that no schedule can anticipate.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nanoevolve_jax.evidence import verdict
from nanoevolve_jax.evidence.comparison import Arm, Bench
from nanoevolve_jax.evidence.confirmation import Arms, Study
from nanoevolve_jax.evidence.documents import AttributionResult, PhasesResult
from nanoevolve_jax.evidence.runs import MAIN, Run, bpb
from nanoevolve_jax.evidence.seeds import PROMOTE_FOLD, Stage, confirmation_seeds, stage_seed
from nanoevolve_jax.evidence.statistics import mean_interval
from nanoevolve_jax.evidence.verdict import STEP_SHARE, PlaceboEvidence, Verdict, judge, step_share
from nanoevolve_jax.execution.job import BATCH_SIZE, CORPUS_SWITCH, LABEL_NOISE, Disturbance, Job
from nanoevolve_jax.execution.json_files import finite_or_null
from nanoevolve_jax.policy.canonical import canonical, moving_actuators
from nanoevolve_jax.policy.spec import OptimizerSpec, Sensors

CONSTANTS = (0.0, 0.25, 0.5, 0.75, 1.0)
PERTURBATIONS = ("lr", LABEL_NOISE, CORPUS_SWITCH, BATCH_SIZE)
SWITCH = "switch"  # program of the engine that has another corpus
WIDE = "wide"  # program of the engine whose batch has room for twice the rows
_PROGRAMS = {CORPUS_SWITCH: SWITCH, BATCH_SIZE: WIDE}
_DONORS, _PLACEBOS, _PERTURBED = (  # stages of `runs.jsonl`
    f"attribute: {name}" for name in ("donors", "placebos", "perturbations")
)


class Placebos(NamedTuple):
    """Bits per byte of every placebo on the seeds of the confirmation; float64[seeds] each.

    Failed runs are NaN. If every donor failed, all values of `schedule` and `yoked` are NaN.
    """

    constants: dict[str, np.ndarray]
    schedule: np.ndarray
    yoked: np.ndarray
    trajectory: np.ndarray | None  # gate trajectory of the schedule; float32[steps]
    donors: int  # number of runs over which the trajectory is averaged
    built_in: np.ndarray | None = None  # winner with built-in functions; None if it has no others


class PerturbationPanel(NamedTuple):
    """Bits per byte by seed and perturbation; float64[seeds, 4] each, NaN for failed runs."""

    winner: np.ndarray
    schedule: np.ndarray
    baseline: np.ndarray


class Attributed(NamedTuple):
    """A finished attribution."""

    verdict: Verdict
    result: AttributionResult
    winner_runs: list[Run]


def attribute(study: Study, arms: Arms, pairs: int) -> Attributed:
    """Trains the placebos and, unless they already show sensing, the perturbation panel.

    The panel is also trained if the step explains more than `STEP_SHARE` of the gate's variance. It
    is not trained if every donor failed.

    Args:
      study: Resources of the confirmation.
      arms: Winner and baseline as they were tested.
      pairs: Number of pairs, which include those of the confirmation.

    Returns:
      The verdict, the results, and the runs of the winner.
    """
    bench, slot, _, log = study
    seeds = slot.seeds[:pairs]
    winner_runs, baseline_runs = (
        bench.runs.run([bench.job(arm, seed, slot.fold) for seed in seeds], f"attribute: {name}")
        for name, arm in (("winner", arms.winner), ("baseline", arms.baseline))
    )
    placebos = run_placebos(bench, arms.winner, seeds, slot.fold)
    share = step_share(gates(bench, winner_runs))
    evidence = PlaceboEvidence(
        baseline=bpb(baseline_runs),
        winner=bpb(winner_runs),
        constants=placebos.constants,
        schedule=placebos.schedule,
        yoked=placebos.yoked,
        built_in=placebos.built_in,
    )
    decided, panel = judge(evidence), None
    log(f"the step explains {share:.0%} of the gate's variance; so far: {decided.label}")
    if placebos.trajectory is not None and (share > STEP_SHARE or decided.label != verdict.SENSING):
        panel = run_perturbations(study, arms, placebos.trajectory)
        means = verdict.Panel(*(values.mean(1) for values in panel))
        decided = judge(evidence._replace(panel=means))
        log(f"after the perturbation panel: {decided.label}")
    arrays = {name: values for name, values in evidence._asdict().items() if values is not None}
    result = AttributionResult(
        pairs=pairs,
        step_share=share,
        donors=placebos.donors,
        best_constants=verdict.best_constants(placebos.constants),
        bpb=finite_or_null(arrays),
        panel=None
        if panel is None
        else {"perturbations": list(PERTURBATIONS), "bpb": finite_or_null(panel)},
        contrasts=finite_or_null(decided.contrasts),
        trajectory=finite_or_null(placebos.trajectory),
    )
    return Attributed(decided, result, winner_runs)


# Placebos ------------------------------------------------------------------------------------


def gates(bench: Bench, runs: Sequence[Run]) -> np.ndarray:
    """Returns the gate trajectories of runs with the full horizon.

    Args:
      bench: Config and runs of the comparison.
      runs: Runs with the full horizon.

    Returns:
      Trajectories; float32[runs, steps]. Rows of failed runs are NaN.
    """
    trajectories = np.full((len(runs), bench.config.confirm.steps), np.nan, np.float32)
    for row, run in zip(trajectories, runs, strict=True):
        if run.failure is None:
            row[:] = bench.runs.telemetry(run)["gate"]
    return trajectories


def donors(bench: Bench, winner: Arm) -> np.ndarray:
    """Trains the winner on promotion seeds and returns its gate trajectories.

    Learning rates are chosen on the first promotion seeds. Donors use the seeds after these.

    Args:
      bench: Config and runs of the comparison.
      winner: Confirmed candidate.

    Returns:
      Trajectories of the runs that did not fail; float32[donors, steps].
    """
    first, count = bench.config.confirm.lr_seeds, bench.config.attribute.donors
    seeds = [stage_seed(Stage.PROMOTE, bench.config.seed, first + i) for i in range(count)]
    jobs = [bench.job(winner, seed, PROMOTE_FOLD) for seed in seeds]
    trajectories = gates(bench, bench.runs.run(jobs, _DONORS))
    return trajectories[np.isfinite(trajectories).all(1)]


def run_placebos(bench: Bench, winner: Arm, seeds: Sequence[int], fold: int) -> Placebos:
    """Trains every placebo.

    Args:
      bench: Config and runs of the comparison.
      winner: Confirmed candidate.
      seeds: Seeds of the confirmation.
      fold: Validation fold of the confirmation.

    Returns:
      The results of the placebos.
    """
    trajectories = donors(bench, winner)
    count, steps = trajectories.shape
    held_at = {f"gate {x:g}": x for x in CONSTANTS}
    mean = None
    if count:
        mean = trajectories.mean(0, dtype=np.float64).astype(np.float32)
        held_at["its time mean"] = float(mean.mean())

    def held(arm: Arm, gates: Sequence[np.ndarray | None]) -> list[Job]:
        pairs = zip(seeds, itertools.cycle(gates), strict=False)
        return [bench.job(arm, seed, fold, gate=gate) for seed, gate in pairs]

    off = winner._replace(
        spec=winner.spec._replace(control=winner.spec.control._replace(enabled=0))
    )
    arms = {name: held(winner, [np.full(steps, x, np.float32)]) for name, x in held_at.items()}
    arms["gate off"] = held(off, [None])
    if winner.code is not None:
        arms["built-in functions"] = held(winner._replace(code=None), [None])
    if count:
        arms["schedule"] = held(winner, [mean])
        arms["yoked"] = held(winner, [*trajectories])
    everything = [job for jobs in arms.values() for job in jobs]
    values = bpb(bench.runs.run(everything, _PLACEBOS)).reshape(len(arms), -1)
    results = dict(zip(arms, values, strict=True))
    missing = np.full(len(seeds), np.nan)
    schedule, yoked = (results.pop(name, missing) for name in ("schedule", "yoked"))
    built_in = results.pop("built-in functions", None)
    return Placebos(results, schedule, yoked, mean, count, built_in)


# Perturbations -------------------------------------------------------------------------------


def draw_perturbations(seed: int, steps: int) -> tuple[float, dict[str, Disturbance]]:
    """Draws the perturbations of a seed of the panel.

    Args:
      seed: Seed of the panel.
      steps: Horizon in steps.

    Returns:
      (factor on the learning rate, other events by the kind of perturbation).
    """
    rng = np.random.default_rng([seed, 1])
    lr_factor = float(2.0 ** rng.uniform(-1.0, 1.0))
    starts = [int(steps * rng.uniform(0.2, 0.7)) for _ in range(3)]
    factor = float(rng.choice([0.5, 2.0]))
    return lr_factor, {
        LABEL_NOISE: Disturbance(LABEL_NOISE, starts[0], starts[0] + max(1, steps // 10), 0.2),
        CORPUS_SWITCH: Disturbance(CORPUS_SWITCH, starts[1], steps),
        BATCH_SIZE: Disturbance(BATCH_SIZE, starts[2], steps, factor),
    }


def run_perturbations(study: Study, arms: Arms, trajectory: np.ndarray) -> PerturbationPanel:
    """Trains winner, schedule and baseline under events that no schedule can anticipate.

    Args:
      study: Resources of the confirmation.
      arms: Winner and baseline as they were tested.
      trajectory: Gate trajectory of the schedule; float32[steps].

    Returns:
      The results of the panel.
    """
    bench, slot = study.bench, study.slot
    count, steps = bench.config.attribute.panel_seeds, bench.config.confirm.steps
    seeds = confirmation_seeds(Stage.DISTURB, bench.config.seed, slot.number, count)
    drawn = [draw_perturbations(seed, steps) for seed in seeds]
    columns: dict[str, list[np.ndarray]] = {"winner": [], "schedule": [], "baseline": []}
    for kind in PERTURBATIONS:
        for name, values in columns.items():
            arm = arms.baseline if name == "baseline" else arms.winner
            gate = trajectory if name == "schedule" else None
            jobs = []
            for seed, (lr_factor, events) in zip(seeds, drawn, strict=True):
                factor = lr_factor if kind == "lr" else 1.0
                moved = arm._replace(lr_factor=arm.lr_factor * factor)
                event = events.get(kind)
                jobs.append(bench.job(moved, seed, slot.fold, gate=gate, disturbance=event))
            program = _PROGRAMS.get(kind, MAIN)
            values.append(bpb(bench.runs.run(jobs, _PERTURBED, program)))
    return PerturbationPanel(**{name: np.stack(v, axis=1) for name, v in columns.items()})


# Phases --------------------------------------------------------------------------------------


def phases(bench: Bench, runs: Sequence[Run], spec: OptimizerSpec) -> PhasesResult | None:
    """Describes the changes of gate and actuators during training, and the sensors behind them.

    Actuators that are not used, or whose poles are equal, are left out because they have no effect.

    Args:
      bench: Config and runs of the comparison.
      runs: Runs of a policy. Failed runs are left out.
      spec: Spec of the policy.

    Returns:
      `n`, the number of runs; `thirds`, the means of gate and actuators in each third of training,
      by name; and `drivers`, the share of each sensor in the variance of the gate's drive, see
      `drive_shares`. Each value is a mean over runs with its 95 % confidence interval. None if
      every run failed.
    """
    telemetry = [bench.runs.telemetry(run) for run in runs if run.failure is None]
    if not telemetry:
        return None
    thirds: dict[str, Any] = {
        name: [
            mean_interval([part.mean() for part in parts])._asdict()
            for parts in zip(*(np.array_split(run[name], 3) for run in telemetry), strict=True)
        ]
        for name in ("gate", *moving_actuators(canonical(spec)))
    }
    shares = [drive_shares(run, spec) for run in telemetry]
    drivers: dict[str, Any] = {
        name: mean_interval([share[name] for share in shares])._asdict() for name in Sensors._fields
    }
    return PhasesResult(n=len(telemetry), thirds=thirds, drivers=drivers)


def drive_shares(telemetry: Mapping[str, np.ndarray], spec: OptimizerSpec) -> dict[str, float]:
    """Returns the share of each sensor in the variance of the gate's drive during a run.

    The drive is the sum of the coefficients times the sensors. The share of a sensor is the
    covariance of its term with the drive, divided by the variance of the drive, so all shares add
    up to 1.

    Args:
      telemetry: Columns of the run; float[steps] each.
      spec: Spec of the policy.

    Returns:
      Shares by sensor; all are 0 if the drive is constant.
    """
    weights = spec.control.coefficients._asdict()
    terms = {name: weights[name] * telemetry[name] for name in Sensors._fields}
    drive = np.asarray(sum(terms.values()))
    variance = np.var(drive)
    if variance == 0:
        return dict.fromkeys(terms, 0.0)
    return {name: float(np.cov(x, drive, ddof=0)[0, 1] / variance) for name, x in terms.items()}
