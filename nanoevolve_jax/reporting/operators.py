"""What each mutation operator brought: tried, survived, promoted, and its gain over the parent."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from nanoevolve_jax.evidence.statistics import Interval, mean_interval
from nanoevolve_jax.evolution.archive import Record

_SURVIVED = ("survivor", "promoted", "winner", "retuned_baseline")


class Operator(NamedTuple):
    """What became of the children of one operator."""

    name: str
    tried: int
    failed: int
    survived: int  # among the survivors when its generation ended
    promoted: int | None  # got fresh seeds; None: there was no promotion
    trained: int  # children that `gain` rests on
    gain: Interval | None  # bpb, parent minus child in screening; None: nothing to rest on
    interval: bool  # whether there are two children at least, so that they show how they scatter


def operators(records: Sequence[Record], entrants: Sequence[str] | None) -> list[Operator]:
    """One row an operator, the most tried first; mutants of the recipe are an operator too.

    A child and its parent were screened on the same seed. Children that failed have no gain, and
    are counted instead.

    Args:
      records: of the search, every parent among them.
      entrants: ids that promotion gave fresh seeds; None: there was none.
    """
    by_id = {record.id: record for record in records}
    children: dict[str, list[Record]] = {}
    for record in records:
        if record.operator is not None:
            children.setdefault(record.operator, []).append(record)
    rows = [_row(name, own, by_id, entrants) for name, own in children.items()]
    return sorted(rows, key=lambda row: (-row.tried, row.name))


def gain_over_parent(record: Record, by_id: dict[str, Record]) -> float:
    """The parent's bpb minus the child's on their screening seed; NaN if either failed."""
    return by_id[record.parent_id].merit.val_bpb - record.merit.val_bpb


def _row(
    name: str, own: Sequence[Record], by_id: dict[str, Record], entrants: Sequence[str] | None
) -> Operator:
    every = [gain_over_parent(record, by_id) for record in own]
    gains = [gain for gain in every if math.isfinite(gain)]
    return Operator(
        name=name,
        tried=len(own),
        failed=sum(record.failure is not None for record in own),
        survived=sum(record.status in _SURVIVED for record in own),
        promoted=None if entrants is None else sum(r.id in set(entrants) for r in own),
        trained=len(gains),
        gain=mean_interval(gains) if gains else None,
        interval=len(gains) > 1,
    )
