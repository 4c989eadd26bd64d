"""The journal of a campaign of code: one line per proposal, in order, with its outcome.

It can be made again from the proposals' folders and the archive. A line is there whole or not at
all; the next append cuts off what a killed process left of one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

from msgspec import Meta

from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.execution import journal
from nanoevolve_jax.execution.json_files import Count, Id, typed
from nanoevolve_jax.policy.slots import SLOTS

FILE = "proposals.jsonl"
FOLDER = "proposals"

CANDIDATE = "candidate"  # trained; what it is worth stands in the archive
REFUSED = "refused"  # by the jail, or for not being an answer
SAME = "same"  # computes what an earlier candidate computes, and is not trained again
FAILED = "failed"  # the provider gave no answer
OUTCOMES = (CANDIDATE, REFUSED, SAME, FAILED)


class Entry(NamedTuple):
    """What became of one proposal."""

    number: int
    island: int
    slot: str
    parent: str  # id
    provider: str
    outcome: str  # one of OUTCOMES
    candidate: str | None  # id of its record; for SAME of the record it equals
    reason: str | None  # a refusal's code, or a word for what failed
    message: str | None  # the same in a line
    gain: float  # sigmas over its parent, 0 at least; 0 without a candidate
    calls: int  # requests that may have been paid
    input_tokens: int
    output_tokens: int
    dollars: float
    seconds: float  # of the provider


def folder_of(workdir: Path, number: int) -> Path:
    """Where a proposal's prompts, answers and verdicts lie."""
    return workdir / FOLDER / f"{number:04d}"


class _EntryDocument(TypedDict):
    number: Count
    island: Count
    slot: Literal[tuple(SLOTS)]
    parent: Id
    provider: str
    outcome: Literal[OUTCOMES]
    candidate: Id | None
    reason: str | None
    message: str | None
    gain: Annotated[float, Meta(ge=0)]
    calls: Count
    input_tokens: Count
    output_tokens: Count
    dollars: Annotated[float, Meta(ge=0)]
    seconds: Annotated[float, Meta(ge=0)]


def append(path: Path, entry: Entry) -> None:
    """Adds a line and syncs it to disk."""
    journal.append(path, [entry._asdict()])


def read(path: Path, *, older: bool = False) -> list[Entry]:
    """The entries in whole lines; nothing is changed.

    Args:
      path: Path of the file; a missing one has no entries.
      older: whether lines may be without seals, see `journal.read`.

    Raises:
      ArchiveError: if a whole line is no entry, or entries are missing before it.
    """
    try:
        documents = journal.read(path, older=older).documents
    except (OSError, ValueError) as error:
        raise ArchiveError(str(error)) from None
    entries: list[Entry] = []
    for document in documents:
        try:
            entry = Entry(**typed(document, _EntryDocument))
            if entry.number != len(entries):
                raise ValueError(f"number must be {len(entries)}, got {entry.number}")
            settled = entry.outcome in (CANDIDATE, SAME)
            if settled != (entry.candidate is not None):
                raise ValueError(f"candidate must be an id if trained, got {entry.candidate!r}")
        except (ValueError, TypeError) as error:
            raise ArchiveError(f"{path} line {len(entries) + 1} is damaged: {error}") from None
        entries.append(entry)
    return entries


def totals(entries: Sequence[Entry]) -> dict[str, Any]:
    """Proposals by outcome, refusals by reason, and what all of them cost."""
    reasons: dict[str, int] = {}
    for entry in entries:
        if entry.outcome == REFUSED:
            reasons[entry.reason] = reasons.get(entry.reason, 0) + 1
    return {
        "proposals": len(entries),
        **{name: sum(e.outcome == name for e in entries) for name in OUTCOMES},
        "reasons": dict(sorted(reasons.items())),
        "calls": sum(e.calls for e in entries),
        "input_tokens": sum(e.input_tokens for e in entries),
        "output_tokens": sum(e.output_tokens for e in entries),
        "dollars": round(sum(e.dollars for e in entries), 9),
        "seconds": round(sum(e.seconds for e in entries), 3),
    }
