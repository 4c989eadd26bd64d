"""The books of a campaign of code: one line a proposal, in order, whatever became of it.

They are a file that can be made again from the proposals' folders and the archive; a line is there
whole or not at all.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nanoevolve_jax.evolution.archive import ArchiveError

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


def append(path: Path, entry: Entry) -> None:
    """Adds a line and syncs it to disk."""
    with open(path, "ab") as file:
        file.write((json.dumps(entry._asdict(), allow_nan=False) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[Entry]:
    """The entries in whole lines; nothing is changed.

    Raises:
      ArchiveError: if a whole line is no entry, or entries are missing before it.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    entries: list[Entry] = []
    for line in content[: content.rfind(b"\n") + 1].splitlines():
        try:
            entry = Entry(**json.loads(line))
            if entry.number != len(entries) or entry.outcome not in OUTCOMES:
                raise ValueError(f"proposal {entry.number} is {entry.outcome!r}")
        except (ValueError, TypeError) as error:
            raise ArchiveError(f"{path} line {len(entries) + 1} is damaged: {error}") from None
        entries.append(entry)
    return entries


def load(path: Path) -> list[Entry]:
    """The entries; an unfinished last line, of a kill in the middle of a write, is cut off."""
    entries = read(path)
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        content = path.read_bytes()
        with open(path, "r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
            os.fsync(file.fileno())
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
