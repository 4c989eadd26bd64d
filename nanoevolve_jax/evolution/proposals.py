"""The proposals of a code campaign in its run folder, and checks of their code.

`proposals.jsonl` contains a line for each proposal, in order, with its outcome.
`require_certified_code` compares the code in the records of an archive with the certified code in
the library.
"""

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

from msgspec import Meta

from nanoevolve_jax.evolution import library
from nanoevolve_jax.evolution.archive import ArchiveError, Record
from nanoevolve_jax.evolution.library import Library
from nanoevolve_jax.execution import journal
from nanoevolve_jax.execution.json_files import Count, Id, typed
from nanoevolve_jax.policy.certified import CertificateError, Certified, digest
from nanoevolve_jax.policy.slots import SLOTS, built_in_source

FILE = "proposals.jsonl"
FOLDER = "proposals"
MOST_SOURCE_BYTES = 20_000  # maximum size of a source that a campaign certifies

CANDIDATE = "candidate"  # the proposal was trained, and the archive contains its score
REFUSED = "refused"  # validation refused the proposal, or the answer did not contain an edit
SAME = "same"  # the proposal is equivalent to an earlier candidate and was not trained again
FAILED = "failed"  # the provider did not return an answer
OUTCOMES = (CANDIDATE, REFUSED, SAME, FAILED)


class Entry(NamedTuple):
    """The outcome of one proposal."""

    number: int
    island: int
    slot: str
    parent: str  # id of the candidate whose code was edited
    provider: str
    outcome: str  # one of OUTCOMES
    candidate: str | None  # id of its record; for SAME, the id of the equivalent record
    reason: str | None  # code of a refusal, such as "import" or "no_edit"
    message: str | None  # explanation of a refusal or a failure, in one line
    gain: float  # gain over its parent in sigmas, at least 0; 0 without a candidate
    calls: int  # number of requests that may have been billed
    input_tokens: int
    output_tokens: int
    dollars: float
    seconds: float  # time spent waiting for the provider


def folder_of(workdir: Path, number: int) -> Path:
    """Returns the folder with the prompts, answers and verdicts of a proposal.

    Args:
      workdir: Run folder.
      number: Number of the proposal, from 0.
    """
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
    """Appends an entry to the journal and syncs it to disk.

    Args:
      path: Path of the journal.
      entry: Outcome of a proposal.
    """
    journal.append(path, [entry._asdict()])


def read(path: Path, *, older: bool = False) -> list[Entry]:
    """Reads the entries of a journal without changing the file.

    Args:
      path: Path of the journal. A missing file has no entries.
      older: Whether lines may lack seals, see `journal.read`.

    Returns:
      Entries in the order of the file.

    Raises:
      ArchiveError: If a complete line is not an entry, or its number is not the next one.
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
            has_candidate = entry.outcome in (CANDIDATE, SAME)
            if has_candidate != (entry.candidate is not None):
                wanted = "an id" if has_candidate else "null"
                raise ValueError(
                    f"candidate of outcome {entry.outcome!r} must be {wanted}, "
                    f"got {entry.candidate!r}"
                )
        except (ValueError, TypeError) as error:
            raise ArchiveError(f"{path} line {len(entries) + 1} is damaged: {error}") from None
        entries.append(entry)
    return entries


def totals(entries: Sequence[Entry]) -> dict[str, Any]:
    """Returns the numbers of proposals by outcome, of refusals by reason, and the total cost.

    Args:
      entries: Entries of a journal.
    """
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


# Checks of the code in an archive -------------------------------------------------------------


def require_certified_code(folder: Path, records: Sequence[Record]) -> None:
    """Checks the certificates, computations, source and diff of every record.

    Args:
      folder: Run folder, whose library contains the certified code.
      records: Records of its archive, in order.

    Raises:
      CertificateError: If certified code is missing or damaged.
      ArchiveError: If a record differs from the certified code. The message names the record.
    """
    stored, functions = Library(folder / library.FOLDER), {}
    by_id = {record.id: record for record in records}

    def get(certificate: str) -> Certified:
        if certificate not in functions:
            functions[certificate] = stored.get(certificate)
            _require_short(functions[certificate])
        return functions[certificate]

    for record in records:
        if record.code is not None:
            try:
                _require_code(record, by_id.get(record.parent_id), get)
            except ValueError as error:
                if type(error) is not ValueError:
                    raise
                raise ArchiveError(f"archive record {record.id!r}: {error}") from None


def _require_short(function: Certified) -> None:
    """Checks the size of a source, because computing the diff of a long one could take hours."""
    if len(function.source) > MOST_SOURCE_BYTES:
        raise CertificateError(
            f"the source of certificate {function.id} must have at most "
            f"{MOST_SOURCE_BYTES:,} bytes, got {len(function.source):,}"
        )


def _require_code(record: Record, parent: Record | None, get: Callable[[str], Certified]) -> None:
    code = record.code
    inherited: Mapping[str, str] = parent.code["certificates"] if parent and parent.code else {}
    if set(code["certificates"]) != set(code["computation"]):
        raise ValueError("code.computation must have the slots of code.certificates")
    for slot, certificate in code["certificates"].items():
        function = get(certificate)
        if (function.slot, function.computation) != (slot, code["computation"][slot]):
            raise ValueError(f"code.computation.{slot} must be that of certificate {certificate}")
        if slot != code["slot"] and inherited.get(slot) != certificate:
            raise ValueError(f"code.certificates.{slot} must be its parent's, got {certificate}")
    if code["slot"] is None:
        if code["certificates"] != inherited:
            raise ValueError("code.certificates must be its parent's")
        return
    text = json.dumps(code["certificate"], sort_keys=True, allow_nan=False)
    function = get(digest(text.encode())[:16])
    slot = function.slot
    # A function that computes what the built-in one does is replaced by the built-in one.
    if code["slot"] != slot or code["certificates"].get(slot) not in (None, function.id):
        raise ValueError(f"code.slot must be that of its certificate, {slot!r}")
    if code["source"] != function.source:
        raise ValueError(f"code.source must be that of certificate {function.id}")
    before = get(inherited[slot]).source if slot in inherited else built_in_source(slot)
    if code["diff"] != unified_diff(before, function.source):
        raise ValueError("code.diff must be the difference from its parent's source")


def unified_diff(before: str, after: str) -> str:
    """Returns the unified diff of two sources in the form that records contain.

    Args:
      before: Source of the parent.
      after: Source of the child.
    """
    lines = (text.splitlines() for text in (before, after))
    return "\n".join(difflib.unified_diff(*lines, "parent", "child", lineterm=""))
