"""The archive of a search, which contains a JSON record for each candidate.

The archive is a journal, so damaged, moved and edited records are detected. Records are appended
and synced one generation at a time. If a process is killed, the next one cuts off the unfinished
generation.
"""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

from msgspec import Meta

from nanoevolve_jax.errors import UserError
from nanoevolve_jax.evidence.score import Merit
from nanoevolve_jax.execution import journal
from nanoevolve_jax.execution.journal import Journal
from nanoevolve_jax.execution.json_files import Count, Id, finite_or_null, typed
from nanoevolve_jax.policy.spec import OptimizerSpec
from nanoevolve_jax.policy.spec_json import spec_from_json, spec_to_json


class ArchiveError(UserError):
    """An error about an archive or a run folder that cannot be used."""


class Record(NamedTuple):
    """One candidate in the archive."""

    id: str
    parent_id: str | None
    generation: int
    operator: str | None  # operator that produced it from its parent
    change: str | None  # difference from the parent, in words
    spec: OptimizerSpec
    recipe: dict[str, float] | None  # recipe overrides of a control; None for a policy
    status: str  # one of STATUSES
    failure: dict[str, Any] | None  # fields `reason` and `step` of a failure
    stage: str  # last stage that the candidate was trained in
    seeds: list[int]
    val_bpb: list[float]  # final validation bits per byte on each seed
    train_loss: list[float]  # training loss on each seed, in nats per token
    steps: list[int]  # number of steps with finite results on each seed
    instability: list[float]  # see `score.instability`, in nats, on each seed
    score: float  # see `score.score`, in sigmas
    cost: float  # FLOPs per training step
    pareto: bool  # whether it was on the Pareto front when its generation ended
    code: dict[str, Any] | None = None  # see `CodeDocument`; None means built-in functions only

    @property
    def merit(self) -> Merit:
        """The three objectives of the screening run."""
        return Merit(self.val_bpb[0], self.cost, self.instability[0])


STATUSES = (
    "baseline",
    "survivor",
    "rejected",
    "dead",
    "promoted",
    "winner",
    "retuned_baseline",
)
_NUMBERS = ("val_bpb", "train_loss", "instability", "score")
_PER_SEED = ("seeds", "val_bpb", "train_loss", "steps", "instability")

Hash = Annotated[str, Meta(pattern=r"\A[0-9a-f]{16,64}\Z")]
_OneOrMore = Meta(min_length=1)


class Cost(TypedDict):
    """The cost of a proposal."""

    provider: str
    calls: Count
    input_tokens: Count
    output_tokens: Count
    dollars: Annotated[float, Meta(ge=0)]
    seconds: Annotated[float, Meta(ge=0)]


class CodeDocument(TypedDict):
    """The field `code` of a record."""

    certificates: dict[str, Hash]  # certificate id of each rewritten slot
    slot: str | None  # slot rewritten in this candidate; None if it has its parent's code
    source: str | None  # source of that slot
    diff: str | None  # difference from the parent's source
    certificate: dict[str, Any] | None  # certificate of that slot
    computation: dict[str, Hash]  # hash of the computation of each rewritten slot
    proposal: Count | None  # number of the proposal and its folder
    cost: Cost | None  # cost of the proposal


CODE = tuple(CodeDocument.__annotations__)
"""Names of the fields of a record's `code`."""


class _Failure(TypedDict):
    reason: str
    step: int | None


class RecordDocument(TypedDict):
    """A record as a JSON object, in which numbers that are not finite are null."""

    id: Id
    parent_id: Id | None
    generation: Count
    operator: str | None
    change: str | None
    spec: dict[str, Any]
    recipe: dict[str, float] | None
    status: Literal[STATUSES]
    failure: _Failure | None
    stage: str
    seeds: Annotated[list[Annotated[int, Meta(ge=0, lt=1 << 32)]], _OneOrMore]
    val_bpb: Annotated[list[float | None], _OneOrMore]
    train_loss: Annotated[list[float | None], _OneOrMore]
    steps: Annotated[list[Count], _OneOrMore]
    instability: Annotated[list[float | None], _OneOrMore]
    score: float | None
    cost: Annotated[float, Meta(gt=0)]
    pareto: bool
    code: CodeDocument | None


def _null_to_nan(value: Any, empty: float) -> Any:
    if isinstance(value, list):
        return [_null_to_nan(x, empty) for x in value]
    return empty if value is None else float(value)


def record_to_json(record: Record) -> dict[str, Any]:
    """Returns a record as a JSON object. Numbers that are not finite become null."""
    document = record._asdict() | {"spec": spec_to_json(record.spec)}
    if record.code is None:
        del document["code"]
    return document | {name: finite_or_null(document[name]) for name in _NUMBERS}


def record_from_json(document: dict[str, Any]) -> Record:
    """Returns the record of a JSON object.

    Args:
      document: JSON object of a record.

    Returns:
      The record. A null becomes NaN, except for the score, for which it becomes -inf.

    Raises:
      ArchiveError: If a field is missing, unknown or of the wrong type.
      SpecError: If its spec is invalid.
    """
    document = {"code": None} | document
    try:
        typed(document, RecordDocument)
    except ValueError as error:
        raise ArchiveError(f"archive record's {error}") from None
    if unknown := sorted(set(document) - set(Record._fields)):
        raise ArchiveError(
            f"archive record's fields must be {', '.join(Record._fields)}, got {unknown[0]!r}"
        )
    if len({len(document[name]) for name in _PER_SEED}) > 1:
        raise ArchiveError(
            f"archive record {document['id']!r} must have one entry per seed in each of "
            f"{', '.join(_PER_SEED)}, got lists of different lengths"
        )
    if document["failure"] is None and None in document["val_bpb"]:
        raise ArchiveError(
            f"archive record {document['id']!r} must have a failure where val_bpb is null"
        )
    values = {name: _null_to_nan(document[name], math.nan) for name in _NUMBERS}
    values["score"] = _null_to_nan(document["score"], -math.inf)
    return Record(**document | values | {"spec": spec_from_json(document["spec"])})


def rewrite(path: Path, records: Iterable[Record]) -> None:
    """Replaces the archive atomically, as promotion does to change the status of records.

    Args:
      path: Path of `archive.jsonl`.
      records: All records in order.
    """
    journal.rewrite(path, map(record_to_json, records))


def append(path: Path, records: Iterable[Record]) -> None:
    """Appends a generation in a single write and syncs it to disk.

    Args:
      path: Path of `archive.jsonl`.
      records: Records of the generation.
    """
    journal.append(path, map(record_to_json, records))


def load(
    path: Path, sizes: list[int], log: Callable[[str], None] = lambda line: None
) -> list[Record]:
    """Reads the complete generations of an archive and cuts off an incomplete one.

    Args:
      path: Path of `archive.jsonl`. A missing file is an empty archive.
      sizes: Number of records in each generation. The last entry also applies to all later ones.
      log: Callback that takes one line for the user.

    Returns:
      Records in order.

    Raises:
      ArchiveError: If a complete line of these generations is not a record.
    """
    lines = _journal(path)
    complete = 0
    for generation in range(len(lines.documents) + 1):
        following = complete + sizes[min(generation, len(sizes) - 1)]
        if following > len(lines.documents):
            break
        complete = following
    records = _records(path, lines.documents[:complete])
    if lines.torn or complete < len(lines.documents):
        kept = lines.ends[complete - 1] if complete else 0
        log(
            f"{path}: {path.stat().st_size - kept} bytes of an unfinished generation are cut off; "
            "it is trained again"
        )
        journal.cut(path, kept)
    return records


def read(path: Path, *, older: bool = False) -> list[Record]:
    """Returns the records of all complete lines, without changing the file.

    The search may still be running.

    Args:
      path: Path of `archive.jsonl`. A missing file is an empty archive.
      older: Whether records may lack seals, see `journal.read`.

    Raises:
      ArchiveError: If it cannot be read, or a complete line is not a record.
    """
    return _records(path, _journal(path, older=older).documents)


def load_all(path: Path) -> list[Record]:
    """Returns the records of a finished search.

    Args:
      path: Path of `archive.jsonl`.

    Raises:
      ArchiveError: If it cannot be read, or any line is not a record.
    """
    lines = _journal(path)
    if lines.torn or not lines.documents:
        raise ArchiveError(
            f"{path} must be the archive of a finished search, got an unfinished one"
        )
    return _records(path, lines.documents)


def _journal(path: Path, *, older: bool = False) -> Journal:
    try:
        return journal.read(path, older=older)
    except (OSError, ValueError) as error:
        raise ArchiveError(str(error)) from None


def _records(path: Path, documents: list[dict[str, Any]]) -> list[Record]:
    """Returns the records of an archive after checking their descent."""
    records: list[Record] = []
    known: dict[str, Record] = {}
    for number, document in enumerate(documents, start=1):
        try:
            record = record_from_json(document)
            _require_descent(record, known)
        except ValueError as error:
            raise ArchiveError(f"{path} line {number} is damaged: {error}") from None
        records.append(record)
        known[record.id] = record
    return records


def _require_descent(record: Record, known: dict[str, Record]) -> None:
    """Checks a record's id, parent and generation against the records before it."""
    if record.id in known:
        raise ArchiveError(f"archive record's id must be new, got {record.id!r} again")
    parent = known.get(record.parent_id)
    if parent is None and (known or record.parent_id is not None):
        raise ArchiveError(
            f"parent_id of {record.id!r} must be the id of an earlier record, got "
            f"{record.parent_id!r}"
        )
    if record.generation < (parent.generation if parent else 0):
        raise ArchiveError(
            f"generation of {record.id!r} must be at least its parent's, {parent.generation}, got "
            f"{record.generation}"
        )
    if record.parent_id is None and record.generation:
        raise ArchiveError(f"generation of {record.id!r} must be 0, got {record.generation}")
