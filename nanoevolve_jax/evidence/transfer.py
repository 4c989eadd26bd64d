"""Does a win hold elsewhere: other learning rates, horizons, width, and less compute?"""

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from nanoevolve_jax.evidence.comparison import Arm, Bench
from nanoevolve_jax.evidence.ledger import Confirmation
from nanoevolve_jax.evidence.runs import bpb
from nanoevolve_jax.evidence.seeds import Stage, confirmation_seeds
from nanoevolve_jax.evidence.work import Call, Group, call

WIDER = "wider"  # the program of the wider model
_FACTORS = (0.5, 2.0)
_CELLS, _CHEAPER, _WIDTH = (  # stages of `runs.jsonl`
    f"transfer: {name}" for name in ("learning rate and horizon", "95 % of the compute", "width")
)


class Cell(NamedTuple):
    """One condition; bits per byte on the same seeds, NaN where a run failed."""

    baseline: np.ndarray
    winner: np.ndarray

    @property
    def gains(self) -> np.ndarray:
        return self.baseline - self.winner


def planned_calls(config: ConfigDict, cheaper_seeds: int, cost_ratio: float = 1.0) -> list[Call]:
    """What transfer asks of the engine; arguments as of `run_cheaper`."""
    steps, runs = config.confirm.steps, 2 * config.transfer.seeds
    cells = [call(_CELLS, runs, horizon) for _, horizon in _conditions(steps).values()]
    arms = (Group(cheaper_seeds, steps), Group(cheaper_seeds, _fewer(steps, cost_ratio)))
    return [*cells, Call(_CHEAPER, arms), call(_WIDTH, runs, steps, WIDER)]


def _conditions(steps: int) -> dict[str, tuple[float, int]]:
    """The cells of level 4: factor on the learning rate, and horizon."""
    rates = {f"lr x{f:g}": (f, steps) for f in _FACTORS}
    return rates | {f"horizon x{f:g}": (1.0, max(1, round(f * steps))) for f in _FACTORS}


def _fewer(steps: int, cost_ratio: float) -> int:
    """Steps that take 95 % of the baseline's compute."""
    return max(1, int(0.95 * steps / cost_ratio))


def _seeds(bench: Bench, stage: Stage, consumed: Confirmation, count: int) -> list[int]:
    return confirmation_seeds(stage, bench.config.seed, consumed.number, count)


def run_cells(bench: Bench, winner: Arm, baseline: Arm, consumed: Confirmation) -> dict[str, Cell]:
    """Level 4: the learning rate and the horizon halved and doubled."""
    steps = bench.config.confirm.steps
    seeds = _seeds(bench, Stage.TRANSFER, consumed, bench.config.transfer.seeds)
    cells = {}
    for name, (factor, horizon) in _conditions(steps).items():
        arms = [arm._replace(lr_factor=arm.lr_factor * factor) for arm in (baseline, winner)]
        jobs = [bench.job(arm, seed, consumed.fold, horizon) for arm in arms for seed in seeds]
        values = bpb(bench.runs.run(jobs, _CELLS))
        cells[name] = Cell(*values.reshape(2, -1))
    return cells


def run_cheaper(
    bench: Bench,
    winner: Arm,
    baseline: Arm,
    consumed: Confirmation,
    cost_ratio: float,
    count: int,
) -> Cell:
    """Level 5: the winner with 95 % of the baseline's compute.

    Args:
      bench: where.
      winner: at its own learning rate.
      baseline: likewise.
      consumed: the confirmation's seeds and fold.
      cost_ratio: FLOPs of the winner's step over the baseline's.
      count: seeds, fixed beforehand.
    """
    steps, seeds = bench.config.confirm.steps, _seeds(bench, Stage.CHEAPER, consumed, count)
    fewer = _fewer(steps, cost_ratio)
    jobs = [bench.job(baseline, seed, consumed.fold) for seed in seeds]
    jobs += [bench.job(winner, seed, consumed.fold, fewer) for seed in seeds]
    values = bpb(bench.runs.run(jobs, _CHEAPER))
    return Cell(*values.reshape(2, -1))


def wider(config: ConfigDict) -> ConfigDict:
    """The config of a model `transfer.width` times as wide, with as many more heads."""
    changed, factor = config.copy_and_resolve_references(), config.transfer.width
    for name in ("n_embd", "n_head", "n_kv_head"):
        changed.model[name] = factor * config.model[name]
    return changed


def run_wider(bench: Bench, winner: Arm, baseline: Arm, consumed: Confirmation) -> Cell:
    """Level 5: the same comparison on a wider model, its recipe scaled by NanoChat's rules."""
    bench = bench._replace(config=wider(bench.config))
    seeds = _seeds(bench, Stage.WIDER, consumed, bench.config.transfer.seeds)
    jobs = [bench.job(arm, seed, consumed.fold) for arm in (baseline, winner) for seed in seeds]
    values = bpb(bench.runs.run(jobs, _WIDTH, WIDER))
    return Cell(*values.reshape(2, -1))
