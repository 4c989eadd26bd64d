"""Rewritten functions of candidates, and the results of the proposals that produced them."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nanoevolve_jax.evolution import proposals, tournament
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.policy.certified import Code
from nanoevolve_jax.policy.slots import SLOTS, built_in_source, is_read
from nanoevolve_jax.reporting.history import History

_OUTCOMES = {
    proposals.CANDIDATE: "trained",
    proposals.REFUSED: "rejected by validation",
    proposals.SAME: "equal to an earlier one",
    proposals.FAILED: "without an answer",
}

# Functions of a candidate ------------------------------------------------------------------


def rewritten_functions(records: Sequence[Record], record: Record) -> list[dict[str, Any]]:
    """Returns the rewritten functions of a candidate, at most one per slot.

    Returns:
      For each function: `slot`, its `scope`, `certificate` (id), `called` (whether the spec uses
      it), `written_in` (id of the candidate that introduced it), `proposal`, `provider`, `cost`,
      `diff` to the previous function, `checks` passed, `isolation`, `cost_over_built_in` (FLOPs
      over those of the built-in function), `source`.
    """
    certificates = record.code["certificates"] if record.code else {}
    chain = tournament.lineage(records, record.id)
    return [
        {
            "slot": slot,
            "scope": SLOTS[slot].scope,
            "certificate": certificate,
            "called": is_read(slot, record.spec),
            **_provenance(chain, slot, certificate),
        }
        for slot, certificate in certificates.items()
    ]


def _provenance(chain: Sequence[Record], slot: str, certificate: str) -> dict[str, Any]:
    """Returns where a function was written; all values are None if no ancestor records it."""
    holders = [r for r in chain if r.code and r.code["certificates"].get(slot) == certificate]
    author = next((r for r in holders if r.code and r.code["slot"] == slot), None)
    code = (author.code if author else None) or {}
    document = code.get("certificate") or {}
    cost = code.get("cost")
    return {
        "written_in": author and author.id,
        "proposal": code.get("proposal"),
        "provider": cost and cost["provider"],
        "cost": cost,
        "diff": code.get("diff"),
        "checks": list(document.get("checks", ())),
        "isolation": document.get("isolation"),
        "cost_over_built_in": _relative_flops(document.get("programs", {})),
        "source": code.get("source"),
    }


def _relative_flops(programs: Mapping[str, Mapping[str, Any]]) -> float | None:
    built_in = sum(facts["baseline_flops"] for facts in programs.values())
    return sum(facts["flops"] for facts in programs.values()) / built_in if built_in else None


def called_slots(record: Record) -> frozenset[str]:
    """Returns the slots with rewritten functions that a candidate's spec calls."""
    slots = record.code["certificates"] if record.code else {}
    return frozenset(slot for slot in slots if is_read(slot, record.spec))


def author_sentence(function: Mapping[str, Any]) -> str:
    """Returns who wrote a function, in which candidate, and at what cost."""
    slot = function["slot"]
    if function["written_in"] is None:
        return f"Its {slot} function is rewritten; the archive does not record by which proposal."
    unused = "" if function["called"] else ", but not called, because the gate is off"
    cost = function["cost"]
    price = f" for {cost_phrase(cost)}" if cost else ""
    return (
        f"Its {slot} function is rewritten{unused}. Written by "
        f"{function['provider'] or 'an unknown provider'} in {function['written_in']}{price}."
    )


def certificate_sentence(function: Mapping[str, Any]) -> str:
    """Returns the certificate of a function, its checks and its cost in FLOPs."""
    ratio = function["cost_over_built_in"]
    passed = f"; checks passed: {', '.join(function['checks'])}" if function["checks"] else ""
    flops = "" if ratio is None else f" It costs {ratio:.3f}x the FLOPs of the built-in function."
    return f"Certificate {function['certificate']}{passed}.{flops}"


def cost_phrase(cost: Mapping[str, Any]) -> str:
    """Returns the cost of provider calls, such as '2 calls, 5,285 + 87 tokens, $0.0056'."""
    calls = "1 call" if cost["calls"] == 1 else f"{cost['calls']:,} calls"
    tokens = f"{cost['input_tokens']:,} + {cost['output_tokens']:,} tokens"
    return f"{calls}, {tokens}, ${cost['dollars']:.4f}"


# Sources -----------------------------------------------------------------------------------


def source_differences(before: Code | None, after: Code | None) -> list[dict[str, Any]]:
    """Returns the slots whose code differs between two policies, with diffs of the sources."""
    differences = []
    for slot in SLOTS:
        old, new = (code.of(slot) if code else None for code in (before, after))
        if old == new:
            continue
        a, b = ((f.source if f else built_in_source(slot)).splitlines() for f in (old, new))
        differences.append(
            {
                "slot": slot,
                "before": old and old.id,
                "after": new and new.id,
                "same_computation": bool(old and new and old.computation == new.computation),
                "diff": "\n".join(difflib.unified_diff(a, b, "before", "after", lineterm="")),
            }
        )
    return differences


def diff_lines(diff: str) -> Iterator[tuple[str, str]]:
    """Yields (kind, text) for each line of a unified diff, without the two file names.

    The kind is 'added', 'removed', 'place' or 'same'. Characters that cannot be printed are
    replaced by '?'.
    """
    kinds = {"+": "added", "-": "removed", "@": "place"}
    for i, line in enumerate(diff.split("\n")):
        if i < 2 and line.startswith(("---", "+++")):
            continue
        yield kinds.get(line[:1], "same"), "".join(x if x.isprintable() else "?" for x in line)


# Proposals ---------------------------------------------------------------------------------


def proposal_totals(history: History) -> dict[str, Any] | None:
    """Returns totals over all proposals, or None for a search without code mutation.

    Returns:
      Totals of all proposals, and the same for each provider under `providers`.
    """
    if history.proposals is None:
        return None
    names = sorted({entry.provider for entry in history.proposals})
    by_provider = {
        name: proposals.totals([e for e in history.proposals if e.provider == name])
        for name in names
    }
    return proposals.totals(history.proposals) | {"providers": by_provider}


def best_proposals(history: History) -> list[tuple[proposals.Entry, float]]:
    """Returns the trained proposals with their gains over the parent in bpb, best first.

    A gain compares the screening runs, on one seed. Failed runs are left out.
    """
    pairs = []
    by_id = {record.id: record for record in history.records}
    for entry in history.proposals or ():
        record = by_id.get(entry.candidate or "") if entry.outcome == proposals.CANDIDATE else None
        parent = by_id.get(entry.parent)
        if record and parent and record.failure is None and parent.failure is None:
            pairs.append((entry, parent.merit.val_bpb - record.merit.val_bpb))
    return sorted(pairs, key=lambda pair: -pair[1])


def proposal_sentences(totals: Mapping[str, Any]) -> list[str]:
    """Returns outcomes, reasons of rejections and costs, one sentence each."""
    count = totals["proposals"]
    if not count:
        return ["No proposal is finished yet."]
    outcomes = [
        f"{totals[name]} {phrase}"
        for name, phrase in _OUTCOMES.items()
        if totals[name] or name == proposals.CANDIDATE
    ]
    noun = "proposal" if count == 1 else "proposals"
    sentences = [f"{count} code {noun}: {', '.join(outcomes)}."]
    if totals["reasons"]:
        ordered = sorted(totals["reasons"].items(), key=lambda pair: (-pair[1], pair[0]))
        reasons = ", ".join(f"{reason} ({count})" for reason, count in ordered)
        sentences.append(f"Reasons for rejection: {reasons}.")
    sentences.append(f"Total cost: {cost_phrase(totals)}.")
    return sentences
