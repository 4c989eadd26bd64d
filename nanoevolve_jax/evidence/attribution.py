"""After a win: is it the sensing, a schedule, or better constants?

Placebos get everything the winner has but its senses, through the same compiled program: the
gate held at constants, its mean trajectory replayed open loop, another seed's trajectory. The
perturbation panel then asks what no schedule can know.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from nanoevolve_jax.evidence.comparison import Arm, Bench
from nanoevolve_jax.evidence.ledger import Confirmation
from nanoevolve_jax.evidence.runs import Run, bpb
from nanoevolve_jax.evidence.seeds import PROMOTE_FOLD, Stage, confirmation_seeds, stage_seed
from nanoevolve_jax.evidence.statistics import mean_interval
from nanoevolve_jax.evidence.work import MAIN, Call, call
from nanoevolve_jax.execution.job import BATCH_SIZE, CORPUS_SWITCH, LABEL_NOISE, Disturbance, Job
from nanoevolve_jax.policy.canonical import canonical, moving_actuators
from nanoevolve_jax.policy.spec import OptimizerSpec, Sensors

CONSTANTS = (0.0, 0.25, 0.5, 0.75, 1.0)
PERTURBATIONS = ("lr", LABEL_NOISE, CORPUS_SWITCH, BATCH_SIZE)
SWITCH = "switch"  # the engine that knows another corpus
WIDE = "wide"  # the engine whose batch has room for twice the rows
_PROGRAMS = {CORPUS_SWITCH: SWITCH, BATCH_SIZE: WIDE}
_DONORS, _PLACEBOS, _PERTURBED = (  # stages of `runs.jsonl`
    f"attribute: {name}" for name in ("donors", "placebos", "perturbations")
)


class Placebos(NamedTuple):
    """Bits per byte of every arm on the confirmation's seeds, float64[seeds]; NaN: failed.

    Where every donor failed there is nothing to replay: schedule and yoked are NaN throughout.
    """

    constants: dict[str, np.ndarray]
    schedule: np.ndarray
    yoked: np.ndarray
    trajectory: np.ndarray | None  # float32[steps], what the schedule replays
    donors: int  # runs that it is the mean of
    built_in: np.ndarray | None = None  # its spec without its code; None: it has no code


class PerturbationPanel(NamedTuple):
    """Bits per byte by seed and perturbation, float64[seeds, 4]; NaN: failed."""

    winner: np.ndarray
    schedule: np.ndarray
    baseline: np.ndarray


def planned_calls(config: ConfigDict) -> list[Call]:
    """What attribution asks of the engine, the perturbation panel included.

    The winner and the baseline have run on the confirmation's seeds, or are about to: a win at the
    first look only moves the rest of their runs here.
    """
    own, steps = config.attribute, config.confirm.steps
    placebos = len(CONSTANTS) + 4  # the time mean, gate off, schedule and yoked
    panel = [
        call(_PERTURBED, own.panel_seeds, steps, _PROGRAMS.get(kind, MAIN))
        for kind in PERTURBATIONS
        for _ in PerturbationPanel._fields
    ]
    return [
        call(_DONORS, own.donors, steps),
        call(_PLACEBOS, placebos * config.confirm.seeds, steps),
        *panel,
    ]


def gates(bench: Bench, runs: Sequence[Run]) -> np.ndarray:
    """The gate's trajectory in every full-horizon run; float32[runs, steps], NaN: it failed."""
    found = np.full((len(runs), bench.config.confirm.steps), np.nan, np.float32)
    for row, run in zip(found, runs, strict=True):
        if run.failure is None:
            row[:] = bench.runs.telemetry(run)["gate"]
    return found


def donors(bench: Bench, winner: Arm) -> np.ndarray:
    """Trajectories from promotion-stage seeds, of runs that survived; float32[donors, steps].

    The learning rates were chosen on the first promotion seeds; donors take the ones after.
    """
    first, count = bench.config.confirm.lr_seeds, bench.config.attribute.donors
    seeds = [stage_seed(Stage.PROMOTE, bench.config.seed, first + i) for i in range(count)]
    jobs = [bench.job(winner, seed, PROMOTE_FOLD) for seed in seeds]
    found = gates(bench, bench.runs.run(jobs, _DONORS))
    return found[np.isfinite(found).all(1)]


def run_placebos(bench: Bench, winner: Arm, seeds: Sequence[int], fold: int) -> Placebos:
    """Trains every placebo on the confirmation's seeds."""
    trajectories = donors(bench, winner)
    count, steps = trajectories.shape
    held_at = {f"gate {x:g}": x for x in CONSTANTS}
    mean = None
    if count:
        mean = trajectories.mean(0, dtype=np.float64).astype(np.float32)
        held_at["its time mean"] = float(mean.mean())

    def held(arm: Arm, gate_of) -> list[Job]:
        return [bench.job(arm, seed, fold, gate=gate_of(i)) for i, seed in enumerate(seeds)]

    off = winner._replace(
        spec=winner.spec._replace(control=winner.spec.control._replace(enabled=0))
    )
    arms = {
        name: held(winner, lambda i, x=value: np.full(steps, x, np.float32))
        for name, value in held_at.items()
    }
    arms["gate off"] = held(off, lambda i: None)
    if winner.code is not None:
        arms["built-in functions"] = held(winner._replace(code=None), lambda i: None)
    if count:
        arms["schedule"] = held(winner, lambda i: mean)
        arms["yoked"] = held(winner, lambda i: trajectories[i % count])
    everything = [job for jobs in arms.values() for job in jobs]
    values = bpb(bench.runs.run(everything, _PLACEBOS)).reshape(len(arms), -1)
    results = dict(zip(arms, values, strict=True))
    missing = np.full(len(seeds), np.nan)
    schedule, yoked = (results.pop(name, missing) for name in ("schedule", "yoked"))
    built_in = results.pop("built-in functions", None)
    return Placebos(results, schedule, yoked, mean, count, built_in)


def draw_perturbations(seed: int, steps: int) -> tuple[float, dict[str, Disturbance]]:
    """What happens under one seed of the panel: a learning-rate factor and three events."""
    rng = np.random.default_rng([seed, 1])
    lr_factor = float(2.0 ** rng.uniform(-1.0, 1.0))
    starts = [int(steps * rng.uniform(0.2, 0.7)) for _ in range(3)]
    factor = float(rng.choice([0.5, 2.0]))
    return lr_factor, {
        LABEL_NOISE: Disturbance(LABEL_NOISE, starts[0], starts[0] + max(1, steps // 10), 0.2),
        CORPUS_SWITCH: Disturbance(CORPUS_SWITCH, starts[1], steps),
        BATCH_SIZE: Disturbance(BATCH_SIZE, starts[2], steps, factor),
    }


def run_perturbations(
    bench: Bench, winner: Arm, baseline: Arm, trajectory: np.ndarray, consumed: Confirmation
) -> PerturbationPanel:
    """Trains winner, schedule and baseline under what no schedule could have known."""
    count, steps = bench.config.attribute.panel_seeds, bench.config.confirm.steps
    seeds = confirmation_seeds(Stage.DISTURB, bench.config.seed, consumed.number, count)
    drawn = [draw_perturbations(seed, steps) for seed in seeds]
    columns: dict[str, list[np.ndarray]] = {"winner": [], "schedule": [], "baseline": []}
    for kind in PERTURBATIONS:
        for name, values in columns.items():
            arm = baseline if name == "baseline" else winner
            gate = trajectory if name == "schedule" else None
            jobs = []
            for seed, (lr_factor, events) in zip(seeds, drawn, strict=True):
                factor = lr_factor if kind == "lr" else 1.0
                moved = arm._replace(lr_factor=arm.lr_factor * factor)
                event = events.get(kind)
                jobs.append(bench.job(moved, seed, consumed.fold, gate=gate, disturbance=event))
            program = _PROGRAMS.get(kind, MAIN)
            values.append(bpb(bench.runs.run(jobs, _PERTURBED, program)))
    return PerturbationPanel(**{name: np.stack(v, axis=1) for name, v in columns.items()})


def phases(bench: Bench, runs: Sequence[Run], spec: OptimizerSpec) -> dict[str, Any] | None:
    """How gate and actuators move with training, and what drives the gate.

    Actuators that nothing reads, or whose poles coincide, are left out: they do not act.

    Returns:
      None if no run survived. `n`: runs; `thirds`: by name, the means of gate and actuators in
      each third of training; `drivers`: the share of the gate's drive within a run that each
      sensor accounts for (covariance with the drive over its variance; shares sum to 1). Every
      one is a mean over runs with its 95 % interval.
    """
    found = [bench.runs.telemetry(run) for run in runs if run.failure is None]
    if not found:
        return None
    thirds = {
        name: [
            mean_interval([part.mean() for part in parts])._asdict()
            for parts in zip(*(np.array_split(f[name], 3) for f in found), strict=True)
        ]
        for name in ("gate", *moving_actuators(canonical(spec)))
    }
    shares = [drive_shares(telemetry, spec) for telemetry in found]
    drivers = {
        name: mean_interval([share[name] for share in shares])._asdict() for name in Sensors._fields
    }
    return {"n": len(found), "thirds": thirds, "drivers": drivers}


def drive_shares(telemetry: Mapping[str, np.ndarray], spec: OptimizerSpec) -> dict[str, float]:
    """Each sensor's share of the variance of a run's drive; all 0 if it stands still.

    Args:
      telemetry: float[steps] by column.
      spec: whose gate it was.
    """
    weights = spec.control.coefficients._asdict()
    terms = {name: weights[name] * telemetry[name] for name in Sensors._fields}
    drive = sum(terms.values())
    variance = np.var(drive)
    if variance == 0:
        return dict.fromkeys(terms, 0.0)
    return {name: float(np.cov(x, drive, ddof=0)[0, 1] / variance) for name, x in terms.items()}
