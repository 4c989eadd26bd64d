"""A campaign of code as a report shows it: outcomes of its proposals and their cost."""

from typing import Any

from nanoevolve_jax.evolution.proposals import CANDIDATE, FAILED, REFUSED, SAME, Entry, totals
from nanoevolve_jax.reporting.history import History

_OUTCOMES = {
    CANDIDATE: "trained",
    REFUSED: "refused",
    SAME: "the same as another",
    FAILED: "without an answer",
}


def of(history: History) -> dict[str, Any] | None:
    """Totals over all proposals and by provider; None: it is no campaign of code.

    Returns:
      `evolution.proposals.totals` of all, and under `providers` the same of each.
    """
    if history.proposals is None:
        return None
    names = sorted({entry.provider for entry in history.proposals})
    by_provider = {
        name: totals([e for e in history.proposals if e.provider == name]) for name in names
    }
    return totals(history.proposals) | {"providers": by_provider}


def best(history: History) -> list[tuple[Entry, float]]:
    """Proposals that were trained to their end, with their gain over the parent in bpb; best first.

    Gains are of the screening run, on one seed.
    """
    found = []
    by_id = {record.id: record for record in history.records}
    for entry in history.proposals or ():
        record = by_id.get(entry.candidate) if entry.outcome == CANDIDATE else None
        parent = by_id.get(entry.parent)
        if record and parent and record.failure is None and parent.failure is None:
            found.append((entry, parent.merit.val_bpb - record.merit.val_bpb))
    return sorted(found, key=lambda pair: -pair[1])


def in_words(found: dict[str, Any]) -> list[str]:
    """Outcomes, refusals and money, a sentence each."""
    count = found["proposals"]
    if not count:
        return ["No proposal is settled yet."]
    outcomes = [
        f"{found[name]} {words}"
        for name, words in _OUTCOMES.items()
        if found[name] or name == CANDIDATE
    ]
    said = [f"{count} {'proposal' if count == 1 else 'proposals'} of code: {', '.join(outcomes)}."]
    if found["reasons"]:
        ordered = sorted(found["reasons"].items(), key=lambda pair: (-pair[1], pair[0]))
        said.append(f"Refused for {', '.join(f'{reason} {n}' for reason, n in ordered)}.")
    said.append(
        f"They took {found['calls']:,} calls, {found['input_tokens']:,} + "
        f"{found['output_tokens']:,} tokens and ${found['dollars']:.4f}."
    )
    return said
