"""Points for trackers, as pure functions of records, telemetry and runs."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from nanoevolve_jax.evidence.runs import Run
from nanoevolve_jax.evolution import tournament
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.policy.spec import Actuators, Sensors
from nanoevolve_jax.tracking.tracker import Point

MOST_STEPS = 1000  # steps of a run that are reported; TensorBoard shows no more
_GROUPS = {
    **{name: f"sensor/{name}" for name in Sensors._fields},
    **{name: f"actuator/{name}" for name in Actuators._fields},
    **{"loss": "train/loss", "grad_norm": "train/grad_norm", "gate": "policy/gate"},
}


def search_points(records: Sequence[Record], batch_tokens: float) -> list[Point]:
    """Returns one point per candidate: its own numbers and those of the search up to it.

    Steps count candidates from 1. Numbers that a failed candidate lacks are left out.

    Args:
      records: Records as they were after screening, the baseline first.
      batch_tokens: Tokens per training step.
    """
    bests = tournament.running_best(records)
    dead = itertools.accumulate(not math.isfinite(r.merit.val_bpb) for r in records)
    steps = itertools.accumulate(record.steps[0] for record in records)
    baseline = records[0] if records else None
    return [
        _point(
            number,
            {
                "candidate/val_bpb": record.merit.val_bpb,
                "candidate/delta_bpb": record.merit.val_bpb - baseline.merit.val_bpb,
                "candidate/score": record.score,
                "candidate/cost_ratio": record.cost / baseline.cost,
                "candidate/instability": record.merit.instability,
                "candidate/train_loss": record.train_loss[0],
                "best/val_bpb": best.merit.val_bpb if best else math.nan,
                "best/delta_bpb": best.merit.val_bpb - baseline.merit.val_bpb if best else math.nan,
                "total/dead": dead_so_far,
                "total/tokens": batch_tokens * steps_so_far,
                "total/generation": record.generation,
            },
        )
        for number, (record, best, dead_so_far, steps_so_far) in enumerate(
            zip(records, bests, dead, steps, strict=True), start=1
        )
    ]


def leaders(records: Sequence[Record]) -> list[str]:
    """Returns the ids of the baseline and of the best candidate at the end of each generation."""
    best_at_the_end = {
        record.generation: best.id
        for record, best in zip(records, tournament.running_best(records), strict=True)
        if best is not None
    }
    names = [record.id for record in records[:1]] + list(best_at_the_end.values())
    return list(dict.fromkeys(names))


def telemetry_points(columns: Mapping[str, np.ndarray]) -> list[Point]:
    """Returns telemetry by training step; long runs are thinned out, but keep their last step.

    Args:
      columns: Columns of `telemetry/<id>.npz`.
    """
    steps = len(columns["loss"])
    stride = max(1, math.ceil(steps / MOST_STEPS))
    by_step = {
        step: {name: columns[column][step] for column, name in _GROUPS.items()}
        for step in sorted({*range(0, steps, stride), *range(steps)[-1:]})
    }
    curve = zip(columns["validation_step"], columns["validation_bpb"], strict=True)
    for step, bpb in curve:
        by_step[int(step)] = by_step.get(int(step), {}) | {"validation/bpb": bpb}
    return [_point(step, by_step[step]) for step in sorted(by_step)]


def run_point(run: Run, number: int) -> Point:
    """Returns the point of a finished run, whose step is its number in its stage, from 1."""
    figures = {"val_bpb": run.val_bpb, "train_loss": run.train_loss}
    return _point(number, {f"run/{k}": v for k, v in figures.items()} | {"run/tokens": run.tokens})


def stage_name(stage: str) -> str:
    """Returns the name of a stage's curves, such as confirm/test for `confirm: test`."""
    return stage.replace(": ", "/").replace(" ", "_")


def _point(step: int, values: Mapping[str, float]) -> Point:
    return Point(step, {k: float(v) for k, v in values.items() if math.isfinite(v)})
