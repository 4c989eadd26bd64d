"""The picture a terminal shows of a run under way: pure functions of what is known so far.

It fits 24 lines: one of progress, eight of what is being trained, eight of the best candidates,
five of the stages after screening.
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

LANES, CANDIDATES, STAGES = 6, 5, 4  # rows of each table at most


class Lane(NamedTuple):
    """A job that is being trained."""

    name: str
    step: int
    steps: int
    losses: np.ndarray  # float32[steps seen by this process]
    val_bpb: float  # the latest


def picture(
    progress: RenderableType,
    lanes: Sequence[Lane],
    records: Sequence[Record],
    stages: Mapping[str, Sequence[Run]],
) -> Group:
    """Everything, what matters most first: a terminal that is too low cuts off the rest.

    Args:
      progress: the line of progress.
      lanes: under way.
      records: of all candidates so far, the baseline first; none outside a search.
      stages: finished runs by stage, the stage that began last at the end.
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
    """What is being trained, with the curve of its training loss."""
    columns = ("training", "step", "loss", "val bpb")
    table = _table(*columns, curve="training loss so far", yielding=["training"])
    for lane in lanes[:LANES]:
        loss = f"{lane.losses[-1]:.4f}" if len(lane.losses) else ""
        step = f"{lane.step}/{lane.steps}"
        table.add_row(_line(lane.name), step, loss, f"{lane.val_bpb:.4f}", Curve(lane.losses))
    return table


def best_line(records: Sequence[Record]) -> Table:
    """The best validation bpb after each generation, as a curve."""
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
    """The best few candidates, and the baseline under them."""
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
    """Finished runs of the latest stages, with the curve of their final bpb."""
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
    """A table whose last column has the room that the others leave; nothing in it wraps.

    Where there is not enough, yielding columns give way before the figures do: rich takes them for
    such as may wrap, but their cells, `_line`s, do not.
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
