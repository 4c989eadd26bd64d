"""The archive: one JSON record a candidate, appended a generation at a time and synced.

A generation is in the archive whole or not at all: a process killed while appending leaves a
tail that the next one cuts off.
"""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from nanoevolve_jax.evidence.score import Merit
from nanoevolve_jax.execution.json_files import finite_or_null
from nanoevolve_jax.policy.spec import OptimizerSpec
from nanoevolve_jax.policy.spec_json import spec_from_json, spec_to_json


class ArchiveError(ValueError):
    """An archive or run folder that cannot be used; the message says which and why."""


class Record(NamedTuple):
    """One candidate as the archive keeps it."""

    id: str
    parent_id: str | None
    generation: int
    operator: str | None
    change: str | None
    spec: OptimizerSpec
    recipe: dict[str, float] | None  # overrides of a control; None for a policy
    status: str  # one of STATUSES
    failure: dict[str, Any] | None  # {"reason", "step"}
    stage: str
    seeds: list[int]
    val_bpb: list[float]  # per seed
    train_loss: list[float]  # per seed, nats a token
    steps: list[int]  # per seed, completed with finite numbers
    instability: list[float]  # per seed, nats
    score: float
    cost: float  # FLOPs a training step
    pareto: bool  # on the front when its generation ended
    code: dict[str, Any] | None = None  # see `CODE`; None: only built-in functions

    @property
    def merit(self) -> Merit:
        """The three objectives in the screening run, which every candidate has."""
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
CODE = {
    "certificates": dict,  # of all rewritten slots, by slot
    "slot": str | None,  # the one rewritten in this candidate; None: its parent's code
    "source": str | None,  # of that slot
    "diff": str | None,  # against the parent's source
    "certificate": dict | None,  # of that slot, whole
    "computation": dict,  # what each rewritten slot computes, as hashes
    "proposal": int | None,  # number of the folder with prompts and answers
    "cost": dict | None,  # of the proposal: provider, calls, tokens, dollars, seconds
}
"""Fields of a record's `code` and their kinds."""
_KINDS = {
    "id": str,
    "parent_id": str | None,
    "generation": int,
    "operator": str | None,
    "change": str | None,
    "recipe": dict | None,
    "status": str,
    "failure": dict | None,
    "stage": str,
    **dict.fromkeys(_PER_SEED, list),
    "score": float | int | None,
    "cost": float | int,
    "pareto": bool,
    "code": dict | None,
}


def _null_to_nan(value: Any, empty: float) -> Any:
    if isinstance(value, list):
        return [_null_to_nan(x, empty) for x in value]
    return empty if value is None else float(value)


def record_to_json(record: Record) -> dict[str, Any]:
    """The JSON object of a record; what is not finite becomes null."""
    document = record._asdict() | {"spec": spec_to_json(record.spec)}
    if record.code is None:
        del document["code"]
    return document | {name: finite_or_null(document[name]) for name in _NUMBERS}


def record_from_json(document: dict[str, Any]) -> Record:
    """The record of a JSON object.

    Raises:
      ArchiveError: if a field is missing, unknown or of the wrong kind.
      SpecError: if its spec is invalid.
    """
    document = {"code": None} | document
    if set(document) != set(Record._fields):
        odd = sorted(set(document) ^ set(Record._fields))
        raise ArchiveError(f"archive record has or lacks {odd[0]!r}; allowed: {Record._fields}")
    for name, kind in _KINDS.items():
        value = document[name]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            what = getattr(kind, "__name__", kind)
            raise ArchiveError(f"archive record's {name} is {value!r}; allowed: {what}")
    if document["status"] not in STATUSES:
        raise ArchiveError(
            f"archive record's status is {document['status']!r}; allowed: {', '.join(STATUSES)}"
        )
    if len({len(document[name]) for name in _PER_SEED}) > 1 or not document["seeds"]:
        raise ArchiveError(
            f"archive record {document['id']!r} has lists of different lengths, or empty ones; "
            f"allowed: one entry a seed in each of {', '.join(_PER_SEED)}"
        )
    for name, kind in CODE.items() if document["code"] else ():
        if not isinstance(document["code"].get(name), kind):
            raise ArchiveError(
                f"archive record's code.{name} is {document['code'].get(name)!r}; allowed: "
                f"{getattr(kind, '__name__', kind)}"
            )
    values = {name: _null_to_nan(document[name], math.nan) for name in _NUMBERS}
    values["score"] = _null_to_nan(document["score"], -math.inf)
    return Record(**document | values | {"spec": spec_from_json(document["spec"])})


def rewrite(path: Path, records: list[Record]) -> None:
    """Replaces the whole archive, or leaves it as it is: promotion changes records' standing."""
    scratch = path.with_name(f".{path.name}")
    scratch.unlink(missing_ok=True)
    append(scratch, records)
    os.replace(scratch, path)


def append(path: Path, records: list[Record]) -> None:
    """Appends a generation in one write and syncs it to disk."""
    lines = "".join(
        json.dumps(record_to_json(record), allow_nan=False) + "\n" for record in records
    )
    with open(path, "ab") as file:
        file.write(lines.encode())
        file.flush()
        os.fsync(file.fileno())


def load(
    path: Path, sizes: list[int], say: Callable[[str], None] = lambda line: None
) -> list[Record]:
    """Reads the complete generations of an archive and cuts off what follows them.

    Args:
      path: of `archive.jsonl`; a missing file is an empty archive.
      sizes: how many records each generation has; later ones are as large as the last.
      say: hears of what is cut off.

    Raises:
      ArchiveError: if a complete line within them is not a record.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()  # torn by a kill in the middle of a write
    complete = 0
    for generation in range(len(lines) + 1):
        following = complete + sizes[min(generation, len(sizes) - 1)]
        if following > len(lines):
            break
        complete = following
    records = _parse(path, lines[:complete])
    kept = sum(map(len, lines[:complete]))
    if kept < path.stat().st_size:
        say(
            f"{path}: {path.stat().st_size - kept} bytes of an unfinished generation are cut off; "
            "it is made again"
        )
        with open(path, "r+b") as file:
            file.truncate(kept)
            os.fsync(file.fileno())
    return records


def read(path: Path) -> list[Record]:
    """The records in whole lines, of a search that may be under way; nothing is changed.

    Raises:
      ArchiveError: if it cannot be read, or such a line is not a record.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read: {error}") from None
    return _parse(path, [line for line in lines if line.endswith(b"\n")])


def load_all(path: Path) -> list[Record]:
    """Reads the archive of a finished search.

    Raises:
      ArchiveError: if it cannot be read, or any line is not a record.
    """
    try:
        return _parse(path, path.read_bytes().splitlines())
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read: {error}") from None


def _parse(path: Path, lines: list[bytes]) -> list[Record]:
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(record_from_json(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ArchiveError(f"{path} line {number} is damaged: {error}") from None
    return records
