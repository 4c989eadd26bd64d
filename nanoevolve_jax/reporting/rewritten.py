"""What is rewritten in a candidate: by whom, how, at what cost, and what was checked of it."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nanoevolve_jax.evolution import tournament
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.policy.certified import Code
from nanoevolve_jax.policy.slots import SLOTS, built_in_source, is_read


def rewritten(records: Sequence[Record], record: Record) -> list[dict[str, Any]]:
    """The rewritten functions of a candidate, one a slot; none: [].

    Returns:
      For each: `slot`, its `scope`, `certificate` (id), `called` (whether the spec uses it),
      `written_in` (the ancestor that brought it, or the candidate), `proposal`, `provider`, `cost`,
      `diff` against the function before it, `checks` passed, `isolation`, `cost_over_built_in`
      (FLOPs of all its programs over the built-in function's), `source`.
    """
    certificates = record.code["certificates"] if record.code else {}
    chain = tournament.lineage(records, record.id)
    return [
        {
            "slot": slot,
            "scope": SLOTS[slot].scope,
            "certificate": certificate,
            "called": is_read(slot, record.spec),
            **_written(chain, slot, certificate),
        }
        for slot, certificate in certificates.items()
    ]


def _written(chain: Sequence[Record], slot: str, certificate: str) -> dict[str, Any]:
    """Where a function was written; all None if no ancestor says so."""
    ours = [r for r in chain if r.code and r.code["certificates"].get(slot) == certificate]
    origin = next((r for r in ours if r.code["slot"] == slot), None)
    code = origin.code if origin else {}
    document = code.get("certificate") or {}
    cost = code.get("cost")
    return {
        "written_in": origin and origin.id,
        "proposal": code.get("proposal"),
        "provider": cost and cost["provider"],
        "cost": cost,
        "diff": code.get("diff"),
        "checks": list(document.get("checks", ())),
        "isolation": document.get("isolation"),
        "cost_over_built_in": _over_built_in(document.get("programs", {})),
        "source": code.get("source"),
    }


def _over_built_in(programs: Mapping[str, Mapping[str, Any]]) -> float | None:
    built_in = sum(facts["baseline_flops"] for facts in programs.values())
    return sum(facts["flops"] for facts in programs.values()) / built_in if built_in else None


def called(record: Record) -> frozenset[str]:
    """The rewritten slots that a candidate's spec calls."""
    slots = record.code["certificates"] if record.code else {}
    return frozenset(slot for slot in slots if is_read(slot, record.spec))


def in_words(one: Mapping[str, Any]) -> str:
    """Who wrote a function, where, and at what cost, in a sentence."""
    if one["written_in"] is None:
        return f"Its {one['slot']} is rewritten; no ancestor here says by whom."
    unused = "" if one["called"] else ", which it does not call, for its gate is off"
    cost = one["cost"]
    paid = f" for {cost_in_words(cost)}" if cost else ""
    return (
        f"Its {one['slot']} is rewritten{unused}: by {one['provider'] or 'someone'} in "
        f"{one['written_in']}{paid}."
    )


def checked_in_words(one: Mapping[str, Any]) -> str:
    """What vouches for a function, in a sentence."""
    passed = ", ".join(one["checks"])
    ratio = one["cost_over_built_in"]
    flops = "" if ratio is None else f" Its FLOPs are {ratio:.3f} times the built-in function's."
    vouched = f", which passed {passed}" if passed else ""
    return f"Certificate {one['certificate']}{vouched}.{flops}"


def cost_in_words(cost: Mapping[str, Any]) -> str:
    """What calls cost: '2 calls, 5,285 + 87 tokens, $0.0056'."""
    calls = "1 call" if cost["calls"] == 1 else f"{cost['calls']:,} calls"
    tokens = f"{cost['input_tokens']:,} + {cost['output_tokens']:,} tokens"
    return f"{calls}, {tokens}, ${cost['dollars']:.4f}"


def source_differences(before: Code | None, after: Code | None) -> list[dict[str, Any]]:
    """Slots whose code differs between two policies, each with a unified diff of the sources."""
    found = []
    for slot in SLOTS:
        a, b = (code.of(slot) if code else None for code in (before, after))
        if a == b:
            continue
        texts = [(f.source if f else built_in_source(slot)).splitlines() for f in (a, b)]
        found.append(
            {
                "slot": slot,
                "before": a and a.id,
                "after": b and b.id,
                "same_computation": bool(a and b and a.computation == b.computation),
                "diff": "\n".join(difflib.unified_diff(*texts, "before", "after", lineterm="")),
            }
        )
    return found


def diff_lines(diff: str) -> Iterator[tuple[str, str]]:
    """Lines of a unified diff with what each is: 'added', 'removed', 'place' or 'same'.

    The two lines that name files are left out. Whatever is no printable character is shown as '?'.
    """
    kinds = {"+": "added", "-": "removed", "@": "place"}
    for i, line in enumerate(diff.split("\n")):
        if i < 2 and line.startswith(("---", "+++")):
            continue
        yield kinds.get(line[:1], "same"), "".join(x if x.isprintable() else "?" for x in line)
