"""Summary of a search: its verdict in one sentence, and an overview as data."""

import collections
import math
from collections.abc import Sequence
from typing import Any

from nanoevolve_jax.evidence.calibration_file import UNCALIBRATED
from nanoevolve_jax.evidence.levels import Ladder, level_of
from nanoevolve_jax.evidence.page import sentence
from nanoevolve_jax.evidence.runs import spent_by_stage
from nanoevolve_jax.evidence.score import pareto_front
from nanoevolve_jax.evolution import tournament
from nanoevolve_jax.evolution.archive import STATUSES, Record
from nanoevolve_jax.evolution.campaign import SCREENING, screening_spent
from nanoevolve_jax.reporting import rewritten_code
from nanoevolve_jax.reporting.descriptions import origin, shorten
from nanoevolve_jax.reporting.history import History

# The verdict -------------------------------------------------------------------------------


def verdict(history: History) -> str:
    """Returns the result of a search in one sentence, with its win level."""
    card, (level, missing) = main_card(history), win_level(history)
    result = _without_card(history) if card is None else sentence(card)[:-1]
    return f"{result} (win level {f'unknown: {missing}' if level is None else level})."


def win_level(history: History) -> tuple[int | None, str | None]:
    """Returns the win level, or None if it is unknown, and what the next level lacks."""
    card = main_card(history)
    if card is not None:
        return card["level"]["level"], card["level"]["missing"]
    if is_uncalibrated(history):
        return 0, level_of(Ladder()).missing
    document = history.calibration
    if document is None:
        return None, "its calibration is missing from the run folder"
    ladder = Ladder(document["panel"]["auc"], document["noise"]["repeat_difference"])
    level = level_of(ladder)
    return level.level, level.missing if level.level < 1 else "nothing is confirmed"


def is_uncalibrated(history: History) -> bool:
    """Returns whether the search ran without a calibration."""
    return history.config.calibration == UNCALIBRATED


def baseline_phrase(history: History) -> str:
    """Returns what a search compares its candidates with, as a noun phrase."""
    return "an untuned baseline" if is_uncalibrated(history) else "the tuned baseline"


def main_card(history: History) -> dict[str, Any] | None:
    """Returns the card of the chosen candidate, or else the card with the highest level."""
    own = history.cards.get(history.chosen.id)
    others = sorted(history.cards.values(), key=lambda card: -card["level"]["level"])
    return own or next(iter(others), None)


def gains(record: Record, reference: Record) -> list[float]:
    """Returns how far a record's loss is below that of another record on each shared seed.

    Returns:
      float[seeds] in bpb, in the order of the record's seeds; NaN if a run failed.
    """
    known = dict(zip(reference.seeds, reference.val_bpb, strict=True))
    pairs = zip(record.seeds, record.val_bpb, strict=True)
    return [known[seed] - bpb for seed, bpb in pairs if seed in known]


def _without_card(history: History) -> str:
    """Returns the verdict before a confirmation, without win level and full stop."""
    promotion = history.promotion
    if promotion is None:
        return _screened(history)
    if promotion["candidate"] is None:
        return (
            "Nothing is confirmed: promotion selected no candidate, because every finalist "
            "failed, broke a constraint or only retuned the baseline"
        )
    picked = history.record(promotion["candidate"])
    reference = history.record(promotion["comparator"])
    fresh = [gain for gain in gains(picked, reference)[1:] if math.isfinite(gain)]
    against = "the tuned baseline" if reference is history.baseline else f"tuned {reference.id}"
    start = f"Nothing is confirmed yet: promotion selected {picked.id}"
    if not fresh:
        return f"{start}, which is to be compared with {against}"
    seeds = "the fresh seed" if len(fresh) == 1 else f"the {len(fresh)} fresh seeds"
    difference = _difference(sum(fresh) / len(fresh))
    return f"{start}, which was {difference} than {against} on {seeds} used to select it"


def _screened(history: History) -> str:
    best, baseline = history.best, history.baseline
    gain = baseline.merit.val_bpb - best.merit.val_bpb
    against = baseline_phrase(history)
    result = f"{best.id} screened {_difference(gain)} than {against} on one seed"
    if gain <= 0:
        count = len(history.records) - 1
        result = f"none of {count} candidates screened better than {against} on one seed"
    if history.summary is None:
        return f"Nothing is confirmed and the search has not ended; so far {result}"
    if is_uncalibrated(history):
        return f"Nothing is confirmed: {result}, and a win requires a tuned baseline"
    return f"Nothing is confirmed: {result}"


def _difference(gain: float) -> str:
    return f"{abs(gain):.4f} bpb {'better' if gain >= 0 else 'worse'}"


# The overview ------------------------------------------------------------------------------


def overview(history: History, best: int) -> dict[str, Any]:
    """Returns a summary of a search as JSON values; numbers may be infinite or NaN.

    Args:
      history: Contents of the run folder.
      best: Number of best candidates to include.
    """
    records = history.records
    card = main_card(history)
    by_status = collections.Counter(record.status for record in records)
    return {
        "folder": str(history.folder),
        "verdict": verdict(history),
        "not_higher_because": card and card["level"]["missing"],
        "compared_with": baseline_phrase(history),
        "finished": history.summary is not None,
        "generations": records[-1].generation,
        "candidates": len(records),
        "by_status": {name: by_status[name] for name in STATUSES if by_status[name]},
        "chosen": {
            status: [record.id for record in records if record.status == status]
            for status in ("promoted", "winner")
        },
        "best": [row(history, record) for record in tournament.survivors(records, best)],
        "front": [row(history, record) for record in front(records)],
        "spent": spent(history),
        "code": rewritten_code.proposal_totals(history),
    }


def front(records: Sequence[Record]) -> list[Record]:
    """Returns the Pareto front over loss, cost and instability, in order of loss."""
    names = set(pareto_front({record.id: record.merit for record in records}))
    members = [record for record in records if record.id in names]
    return sorted(members, key=lambda record: record.merit.val_bpb)


def row(history: History, record: Record) -> dict[str, Any]:
    """Returns the table row of a candidate.

    Returns:
      `val_bpb`, `cost_over_baseline` and `instability` of the screening run, and `gain`, the mean
      of baseline minus candidate in bpb over `seeds` shared seeds (-inf if a run failed).
    """
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
    """Returns runs, failed runs and tokens of the search by stage, without the calibration."""
    tokens = history.config.train.batch_size * history.config.model.sequence_len
    screening = screening_spent(history.records, tokens)
    return {SCREENING: screening} | spent_by_stage(history.runs)
