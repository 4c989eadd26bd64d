"""Does a win hold elsewhere: other learning rates, horizons, width, and less compute?"""

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from nanoevolve_jax.evidence.comparison import Arm, Bench
from nanoevolve_jax.evidence.ledger import Confirmation
from nanoevolve_jax.evidence.runs import bpb
from nanoevolve_jax.evidence.seeds import Stage, confirmation_seeds

WIDER = "wider"  # the program of the wider model
_FACTORS = (0.5, 2.0)


class Cell(NamedTuple):
    """One condition; bits per byte on the same seeds, NaN where a run failed."""

    baseline: np.ndarray
    winner: np.ndarray

    @property
    def gains(self) -> np.ndarray:
        return self.baseline - self.winner


def _seeds(bench: Bench, stage: Stage, consumed: Confirmation, count: int) -> list[int]:
    return confirmation_seeds(stage, bench.config.seed, consumed.number, count)


def run_cells(bench: Bench, winner: Arm, baseline: Arm, consumed: Confirmation) -> dict[str, Cell]:
    """Level 4: the learning rate and the horizon halved and doubled."""
    steps = bench.config.confirm.steps
    seeds = _seeds(bench, Stage.TRANSFER, consumed, bench.config.transfer.seeds)
    conditions = {f"lr x{f:g}": (f, steps) for f in _FACTORS}
    conditions |= {f"horizon x{f:g}": (1.0, max(1, round(f * steps))) for f in _FACTORS}
    cells = {}
    for name, (factor, horizon) in conditions.items():
        arms = [arm._replace(lr_factor=arm.lr_factor * factor) for arm in (baseline, winner)]
        jobs = [bench.job(arm, seed, consumed.fold, horizon) for arm in arms for seed in seeds]
        values = bpb(bench.runs.run(jobs, "transfer: learning rate and horizon"))
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
    fewer = max(1, int(0.95 * steps / cost_ratio))
    jobs = [bench.job(baseline, seed, consumed.fold) for seed in seeds]
    jobs += [bench.job(winner, seed, consumed.fold, fewer) for seed in seeds]
    values = bpb(bench.runs.run(jobs, "transfer: 95 % of the compute"))
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
    values = bpb(bench.runs.run(jobs, "transfer: width", WIDER))
    return Cell(*values.reshape(2, -1))
