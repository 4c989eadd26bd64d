"""The section on rewritten code: what became of proposals, what they cost, the best of them.

Sources, answers and refusals were written by strangers. They are only ever text here: the template
escapes everything, and labels of figures are ids.
"""

from typing import Any

from nanoevolve_jax.evolution.proposals import CANDIDATE, FAILED, REFUSED, SAME, Entry
from nanoevolve_jax.reporting import code_charts, proposals, rewritten
from nanoevolve_jax.reporting.history import History
from nanoevolve_jax.reporting.section import Diff, Group, Section, Table

_SHOWN = 3  # proposals with their diffs
_REFUSALS = 200  # rows, the last ones


def code(history: History) -> Section | None:
    """Rewritten code; None if the folder is no campaign of code."""
    found = proposals.of(history)
    if found is None:
        return None
    best = proposals.best(history)
    said = proposals.in_words(found)
    if best:
        entry, gain = best[0]
        start = "The largest gain over a parent" if gain > 0 else "None is better than its parent"
        said.append(f"{start}: {entry.candidate}, {gain:+.4f} bpb in screening, on one seed.")
    paid = [(entry, gain) for entry, gain in best if entry.calls]
    return Section(
        "code",
        "Rewritten code",
        said,
        [Group(None, [code_charts.gain_and_cost(paid)])] if paid else [],
        _tables(history, found),
        diffs=[_diff(history, entry, gain) for entry, gain in best[:_SHOWN]],
    )


def _diff(history: History, entry: Entry, gain: float) -> Diff:
    """What a proposal rewrote."""
    record = history.record(entry.candidate)
    functions = rewritten.rewritten(history.records, record)
    own = next((x for x in functions if x["written_in"] == record.id), None)
    text = (record.code or {}).get("diff") or ""
    return Diff(
        f"{record.id}: {entry.slot} of {entry.parent}, {gain:+.4f} bpb",
        [*([rewritten.in_words(own), rewritten.checked_in_words(own)] if own else [])],
        list(rewritten.diff_lines(text)),
    )


def _tables(history: History, found: dict[str, Any]) -> list[Table]:
    gains = {}
    for entry, gain in proposals.best(history):
        gains.setdefault(entry.provider, gain)
    head = [
        *("provider", "proposals", "trained", "refused", "same", "no answer"),
        *("calls", "tokens in", "tokens out", "dollars", "best gain, bpb"),
    ]
    rows = [
        [
            name,
            str(one["proposals"]),
            *(str(one[outcome]) for outcome in _OUTCOMES),
            *(f"{one[x]:,}" for x in ("calls", "input_tokens", "output_tokens")),
            f"{one['dollars']:.4f}",
            f"{gains[name]:+.4f}" if name in gains else "-",
        ]
        for name, one in found["providers"].items()
    ]
    refused = [
        [str(e.number), e.slot, e.parent, e.provider, e.reason or "no answer", e.message or ""]
        for e in history.proposals or ()
        if e.outcome in (REFUSED, FAILED)
    ][-_REFUSALS:]
    tables = [Table("Providers", head, rows)] if rows else []
    if refused:
        head = ["proposal", "slot", "parent", "provider", "reason", "message"]
        tables.append(Table("", head, refused, folded=True, summary="What was refused, and why"))
    return tables


_OUTCOMES = (CANDIDATE, REFUSED, SAME, FAILED)
