"""A search on one page: its verdict, its best candidates, its front, what it spent."""

import collections
import math
from collections.abc import Sequence
from typing import Any

from nanoevolve_jax.evidence.runs import spent_by_stage
from nanoevolve_jax.evidence.score import pareto_front
from nanoevolve_jax.evolution import tournament
from nanoevolve_jax.evolution.archive import STATUSES, Record
from nanoevolve_jax.evolution.campaign import SCREENING, screening_spent
from nanoevolve_jax.reporting import proposals
from nanoevolve_jax.reporting.history import History
from nanoevolve_jax.reporting.words import against, gains, origin, shorten, telling_card, verdict


def overview(history: History, best: int) -> dict[str, Any]:
    """What a search came to, as JSON has it once what is not finite is null.

    Args:
      history: of the search.
      best: how many of the best candidates.
    """
    records = history.records
    card = telling_card(history)
    standing = collections.Counter(record.status for record in records)
    return {
        "folder": str(history.folder),
        "verdict": verdict(history),
        "not_higher_because": card and card["level"]["missing"],
        "compared_with": against(history),
        "finished": history.summary is not None,
        "generations": records[-1].generation,
        "candidates": len(records),
        "by_status": {name: standing[name] for name in STATUSES if standing[name]},
        "chosen": {
            status: [record.id for record in records if record.status == status]
            for status in ("promoted", "winner")
        },
        "best": rows(history, tournament.survivors(records, best)),
        "front": rows(history, front(records)),
        "spent": spent(history),
        "code": proposals.of(history),
    }


def front(records: Sequence[Record]) -> list[Record]:
    """The records that no other one beats in bpb, cost and stability; lowest bpb first."""
    names = set(pareto_front({record.id: record.merit for record in records}))
    found = [record for record in records if record.id in names]
    return sorted(found, key=lambda record: record.merit.val_bpb)


def rows(history: History, records: Sequence[Record]) -> list[dict[str, Any]]:
    """What a table says of candidates.

    Returns:
      For each: `val_bpb`, `cost_over_baseline` and `instability` of the screening run; `gain`, the
      mean of baseline minus candidate in bpb over `seeds` shared seeds, -inf where a run failed.
    """
    return [row(history, record) for record in records]


def row(history: History, record: Record) -> dict[str, Any]:
    """See `rows`."""
    own = gains(record, history.baseline)
    finite = bool(own) and all(math.isfinite(gain) for gain in own)
    return {
        "id": record.id,
        "status": record.status,
        "generation": record.generation,
        "val_bpb": record.merit.val_bpb,
        "gain": sum(own) / len(own) if finite else -math.inf,
        "seeds": len(own),
        "cost_over_baseline": record.cost / history.baseline.cost,
        "instability": record.merit.instability,
        "score": record.score,
        "change": record.change and shorten(record.change),
        "origin": origin(record),
    }


def spent(history: History) -> dict[str, dict[str, int]]:
    """Runs, failed runs and tokens of this folder, by stage; a calibration has its own."""
    tokens = history.config.train.batch_size * history.config.model.sequence_len
    screening = screening_spent(history.records, tokens)
    return {SCREENING: screening} | spent_by_stage(history.runs)
