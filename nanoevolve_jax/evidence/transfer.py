"""Transfer of a win to other learning rates and horizons, less compute and a wider model."""

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from nanoevolve_jax.evidence.confirmation import Arms, Study
from nanoevolve_jax.evidence.documents import TransferResult
from nanoevolve_jax.evidence.runs import MAIN, bpb
from nanoevolve_jax.evidence.seeds import Stage, confirmation_seeds
from nanoevolve_jax.execution.job import Job
from nanoevolve_jax.execution.json_files import finite_or_null

WIDER = "wider"  # program of the wider model
_FACTORS = (0.5, 2.0)
_CELLS, _CHEAPER, _WIDTH = (  # stages of `runs.jsonl`
    f"transfer: {name}" for name in ("learning rate and horizon", "95 % of the compute", "width")
)


class Cell(NamedTuple):
    """Bits per byte of both arms in a condition; float64[seeds] each, NaN for failed runs."""

    baseline: np.ndarray
    winner: np.ndarray

    @property
    def gains(self) -> np.ndarray:
        """Gain of the winner on each seed, in bpb; float64[seeds]."""
        return self.baseline - self.winner


def transfer(study: Study, arms: Arms, cheaper_pairs: int) -> TransferResult:
    """Trains both arms under the conditions of levels 4 and 5.

    Args:
      study: Resources of the confirmation.
      arms: Winner and baseline as they were tested.
      cheaper_pairs: Number of pairs at 95 % of the compute, see `levels.required_seeds`.

    Returns:
      Results by condition.
    """
    cells = run_cells(study, arms)
    cheaper = run_cheaper(study, arms, cheaper_pairs)
    wide = run_wider(study, arms)
    return TransferResult(
        cells={name: finite_or_null(cell) for name, cell in cells.items()},
        cheaper=finite_or_null(cheaper),
        wider=finite_or_null(wide),
    )


def run_cells(study: Study, arms: Arms) -> dict[str, Cell]:
    """Trains both arms at other learning rates and horizons, for level 4.

    The learning rate and the horizon are each halved and doubled, separately.

    Args:
      study: Resources of the confirmation.
      arms: Winner and baseline as they were tested.

    Returns:
      Results by name of the condition.
    """
    bench, steps = study.bench, study.bench.config.confirm.steps
    seeds = _seeds(study, Stage.TRANSFER, bench.config.transfer.seeds)
    conditions = {f"lr x{f:g}": (f, steps) for f in _FACTORS}
    conditions |= {f"horizon x{f:g}": (1.0, max(1, round(f * steps))) for f in _FACTORS}
    cells = {}
    for name, (factor, horizon) in conditions.items():
        moved = [
            arm._replace(lr_factor=arm.lr_factor * factor) for arm in (arms.baseline, arms.winner)
        ]
        jobs = [bench.job(arm, seed, study.slot.fold, horizon) for arm in moved for seed in seeds]
        cells[name] = _cell(study, jobs, _CELLS)
    return cells


def run_cheaper(study: Study, arms: Arms, pairs: int) -> Cell:
    """Trains the winner with 95 % of the baseline's compute (level 5).

    Args:
      study: Resources of the confirmation.
      arms: Winner and baseline as they were tested.
      pairs: Number of pairs, which is fixed beforehand.

    Returns:
      Results of both arms.
    """
    bench, fold = study.bench, study.slot.fold
    seeds = _seeds(study, Stage.CHEAPER, pairs)
    fewer = max(1, int(0.95 * bench.config.confirm.steps / arms.cost_ratio))
    jobs = [bench.job(arms.baseline, seed, fold) for seed in seeds]
    jobs += [bench.job(arms.winner, seed, fold, fewer) for seed in seeds]
    return _cell(study, jobs, _CHEAPER)


def wider(config: ConfigDict) -> ConfigDict:
    """Returns the config with `transfer.width` times the model width and number of heads."""
    changed, factor = config.copy_and_resolve_references(), config.transfer.width
    for name in ("n_embd", "n_head", "n_kv_head"):
        changed.model[name] = factor * config.model[name]
    return changed


def run_wider(study: Study, arms: Arms) -> Cell:
    """Trains both arms on a wider model, with the recipe scaled by NanoChat's rules (level 5).

    Args:
      study: Resources of the confirmation.
      arms: Winner and baseline as they were tested.

    Returns:
      Results of both arms.
    """
    bench = study.bench._replace(config=wider(study.bench.config))
    seeds = _seeds(study, Stage.WIDER, bench.config.transfer.seeds)
    both = (arms.baseline, arms.winner)
    jobs = [bench.job(arm, seed, study.slot.fold) for arm in both for seed in seeds]
    return _cell(study, jobs, _WIDTH, WIDER)


def _seeds(study: Study, stage: Stage, count: int) -> list[int]:
    return confirmation_seeds(stage, study.bench.config.seed, study.slot.number, count)


def _cell(study: Study, jobs: list[Job], stage: str, program: str = MAIN) -> Cell:
    """Returns the results of jobs, of which the first half is the baseline's."""
    values = bpb(study.bench.runs.run(jobs, stage, program))
    return Cell(*values.reshape(2, -1))
