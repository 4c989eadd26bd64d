"""The live picture of a run, as pure functions of its state.

It fits 24 lines: one for progress, eight for running jobs, eight for the best candidates, and five
for the stages after screening.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table

from nanoevolve_jax.evidence.runs import Run, bpb
from nanoevolve_jax.evolution import tournament
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.terminal.console import plain
from nanoevolve_jax.terminal.sparkline import Curve

LANES, CANDIDATES, STAGES = 6, 5, 4  # maximum number of rows of each table


class Lane(NamedTuple):
    """A job in training."""

    name: str
    step: int
    steps: int
    losses: np.ndarray  # training losses, float32[steps that this process trained]
    val_bpb: float  # latest validation bpb


def picture(
    progress: RenderableType,
    lanes: Sequence[Lane],
    records: Sequence[Record],
    stages: Mapping[str, Sequence[Run]],
) -> Group:
    """Returns the whole picture, most important part first because a low terminal cuts off the end.

    Args:
      progress: Line of progress.
      lanes: Jobs in training.
      records: Records of all candidates so far, the baseline first; empty outside a search.
      stages: Finished runs by stage, the latest stage last.
    """
    parts = [progress]
    if lanes:
        parts.append(lanes_table(lanes))
    if len(lanes) > LANES:
        parts.append(_line(f"and {len(lanes) - LANES} more"))
    if records:
        parts += [best_line(records), candidates_table(records)]
    if stages:
        parts.append(stages_table(stages))
    return Group(*parts)


def lanes_table(lanes: Sequence[Lane]) -> Table:
    """Returns a table of the jobs in training, with the curves of their training losses."""
    columns = ("training", "step", "loss", "val bpb")
    table = _table(*columns, curve="training loss so far", yielding=["training"])
    for lane in lanes[:LANES]:
        loss = f"{lane.losses[-1]:.4f}" if len(lane.losses) else ""
        step = f"{lane.step}/{lane.steps}"
        table.add_row(_line(lane.name), step, loss, f"{lane.val_bpb:.4f}", Curve(lane.losses))
    return table


def best_line(records: Sequence[Record]) -> Table:
    """Returns the curve of the best validation bpb by generation."""
    by_generation = {
        record.generation: best.merit.val_bpb
        for record, best in zip(records, tournament.running_best(records), strict=True)
        if best is not None
    }
    values = list(by_generation.values())
    ends = f"{values[0]:.4f} to {values[-1]:.4f}" if values else ""
    grid = Table.grid(padding=(0, 1))
    for _ in range(3):
        grid.add_column(no_wrap=True, overflow="ellipsis")
    grid.add_row("best by generation", Curve(values, most=30), ends)
    return grid


def candidates_table(records: Sequence[Record]) -> Table:
    """Returns a table of the best candidates and the baseline."""
    baseline, best = records[0], tournament.survivors(records, CANDIDATES)
    columns = ("best", "val bpb", "change", "status", "stage")
    table = _table(*columns, curve="made by", yielding=["status", "stage"])
    for record in best if baseline in best else [*best, baseline]:
        change = record.merit.val_bpb - baseline.merit.val_bpb
        figures = f"{record.merit.val_bpb:.4f}", f"{change:+.4f}"
        words = map(_line, (record.status, record.stage, record.change or ""))
        table.add_row(_line(record.id), *figures, *words)
    return table


def stages_table(stages: Mapping[str, Sequence[Run]]) -> Table:
    """Returns a table of the latest stages, with the curves of their final bpb."""
    columns = ("stage", "runs", "failed", "best bpb")
    table = _table(*columns, curve="final bpb, run by run", yielding=["stage"])
    for stage in list(stages)[-STAGES:]:
        finals = bpb(stages[stage])
        finite = finals[np.isfinite(finals)]
        best = f"{finite.min():.4f}" if len(finite) else ""
        failed = f"{len(finals) - len(finite)}"
        table.add_row(_line(stage), f"{len(finals)}", failed, best, Curve(finals))
    return table


def _table(*columns: str, curve: str, yielding: Collection[str]) -> Table:
    """Returns a table in which nothing wraps, and whose last column takes the remaining width.

    On a narrow terminal the yielding columns shrink before the numbers do. Rich shrinks columns
    that may wrap, but their cells are `_line`s, which do not.
    """
    table = Table(box=None, pad_edge=False, expand=True, header_style="bold")
    for i, name in enumerate(columns):
        if name in yielding:
            table.add_column(_line(name))
        else:
            justify = "right" if i else "left"
            table.add_column(name, no_wrap=True, overflow="ellipsis", justify=justify)
    table.add_column(curve, no_wrap=True, overflow="ellipsis", ratio=1)
    return table


def _line(text: str) -> RenderableType:
    return plain(text, no_wrap=True, overflow="ellipsis")
