"""A search in words: what it came to, and where a candidate comes from."""

import math
from collections.abc import Sequence
from typing import Any

from nanoevolve_jax.evidence.calibration_file import UNCALIBRATED
from nanoevolve_jax.evidence.levels import Ladder, level_of
from nanoevolve_jax.evidence.page import sentence
from nanoevolve_jax.evolution import tournament
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.reporting.history import History

_CONTROL = {
    "control.enabled": "gate",
    "control.bias": "gate bias",
    "control.sharpness": "gate sharpness",
    "control.ema_beta": "sensor ema_beta",
}


# The verdict -------------------------------------------------------------------------------


def verdict(history: History) -> str:
    """What the search came to: what was found, against what, and its win level."""
    card, (level, missing) = telling_card(history), win_level(history)
    found = _without_card(history) if card is None else sentence(card)[:-1]
    place = f"win level {level}" if level is not None else f"win level not known, for {missing}"
    return f"{found} ({place})."


def win_level(history: History) -> tuple[int | None, str | None]:
    """(the level of the search, None if it is not known; what keeps it there)."""
    card = telling_card(history)
    if card is not None:
        return card["level"]["level"], card["level"]["missing"]
    if _is_uncalibrated(history):
        return 0, level_of(Ladder()).missing
    document = history.calibration
    if document is None:
        return None, "the calibration is not where the search found it"
    ladder = Ladder(document["panel"]["auc"], document["noise"]["repeat_difference"])
    found = level_of(ladder)
    return found.level, found.missing if found.level < 1 else "nothing is confirmed"


def against(history: History) -> str:
    """What the candidates of a search are compared with."""
    return "an untuned baseline" if _is_uncalibrated(history) else "the tuned baseline"


def telling_card(history: History) -> dict[str, Any] | None:
    """The card of whom a reader should look at first, or else the one of the highest level."""
    own = history.cards.get(history.chosen.id)
    others = sorted(history.cards.values(), key=lambda card: -card["level"]["level"])
    return own or next(iter(others), None)


def gains(record: Record, reference: Record) -> list[float]:
    """How much lower a record's bpb is than another's, on each seed that both have.

    Returns:
      float[seeds] in bpb, in the order of the record's seeds; NaN where a run failed.
    """
    known = dict(zip(reference.seeds, reference.val_bpb, strict=True))
    pairs = zip(record.seeds, record.val_bpb, strict=True)
    return [known[seed] - bpb for seed, bpb in pairs if seed in known]


def _is_uncalibrated(history: History) -> bool:
    return history.config.calibration == UNCALIBRATED


def _without_card(history: History) -> str:
    """The verdict before any confirmation, without its level and its full stop."""
    promotion = history.promotion
    if promotion is None:
        return _screened(history)
    if promotion["candidate"] is None:
        return (
            "Nothing is confirmed: promotion picked nothing, for every finalist failed, broke a "
            "constraint or only retuned the baseline"
        )
    picked = history.record(promotion["candidate"])
    reference = history.record(promotion["comparator"])
    fresh = [x for x in gains(picked, reference)[1:] if math.isfinite(x)]  # the first: screening
    against = "the tuned baseline" if reference is history.baseline else f"{reference.id}, tuned"
    start = f"Nothing is confirmed yet: promotion picked {picked.id}"
    if not fresh:
        return f"{start}, to be compared with {against}"
    return (
        f"{start}, {_better(sum(fresh) / len(fresh))} than {against} over {_seeds(len(fresh))}, "
        "which chose it and so cannot test it"
    )


def _screened(history: History) -> str:
    best, baseline = history.best, history.baseline
    gain = baseline.merit.val_bpb - best.merit.val_bpb
    found = f"{best.id} screened {_better(gain)} than {against(history)} on one seed"
    if gain <= 0:
        count = len(history.records) - 1
        found = f"none of {count} candidates screened better than {against(history)} on one seed"
    if history.summary is None:
        return f"Nothing is confirmed, and the search has not ended: so far {found}"
    if _is_uncalibrated(history):
        return f"Nothing is confirmed: {found}, and nothing can win against an untuned baseline"
    return f"Nothing is confirmed: {found}"


def _better(gain: float) -> str:
    return f"{abs(gain):.4f} bpb {'better' if gain >= 0 else 'worse'}"


def _seeds(count: int) -> str:
    return "one fresh seed" if count == 1 else f"{count} fresh seeds"


# Where a candidate comes from --------------------------------------------------------------


def lineage(records: Sequence[Record], candidate: str) -> list[str]:
    """One line for each ancestor, the founder first, the candidate last.

    Args:
      records: of the search, every ancestor among them.
      candidate: an id of theirs.

    Returns:
      Lines such as 'generation 3, adjust_gate_weight: grad_alignment 0.7 -> 1.1'.
    """
    return [origin(record) for record in tournament.lineage(records, candidate)]


def lineage_in_one_line(records: Sequence[Record], candidate: str) -> str:
    """A candidate's lineage: 'annealing, then control.bias -0.5 -> -0.2'."""
    chain = tournament.lineage(records, candidate)
    steps = [r.id if r.operator in (None, "preset") else str(r.change) for r in chain]
    return ", then ".join(steps[1:] if chain[-1].operator == "preset" else steps)


def origin(record: Record) -> str:
    """How a candidate came to be, in one line."""
    start = f"generation {record.generation}"
    if record.operator is None:
        return f"{start}, {record.id}: NanoChat's optimizer under the recipe, the baseline"
    changes = shorten(record.change or "nothing")
    if record.operator == "preset":
        return f"{start}, preset {record.id}: {changes}"
    if record.code and record.code["slot"]:
        return f"{start}, {record.operator}: {changes}{_paid(record.code['cost'])}"
    suffix = " (a control: only the recipe)" if record.operator == tournament.CONTROL else ""
    return f"{start}, {record.operator}: {changes}{suffix}"


def _paid(cost: dict[str, Any] | None) -> str:
    """What asking for code cost."""
    return f" (${cost['dollars']:.4f})" if cost else ""


def shorten(change: str) -> str:
    """A change as the archive has it, with short names for its fields."""
    parts = (part.partition(" ") for part in change.split("; "))
    return "; ".join(f"{short_name(path)}{space}{rest}" for path, space, rest in parts)


def short_name(path: str) -> str:
    """A field of a spec or a recipe without the groups it lies in; no two share a name.

    A sensor alone is its weight in the gate.
    """
    if path in _CONTROL:
        return _CONTROL[path]
    group, _, name = path.rpartition(".")
    name = name.removesuffix("_ema")
    if group == "control.coefficients":
        return name
    if group == "control.normalisers":
        return f"{name} normaliser"
    return f"{group.removeprefix('control.')} {name}".strip()
