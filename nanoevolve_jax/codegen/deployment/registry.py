"""Registry of the jobs that were sent from this machine, with their results.

A job prints its result as a marked line of its log, so a shared file system is not needed. The line
contains the sealed result, compressed and encoded in base64.
"""

import base64
import difflib
import json
import zlib
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec

from nanoevolve_jax.errors import must
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.sealed import FORMAT, read_sealed, seal_of, write_sealed
from nanoevolve_jax.execution.intact import FolderError
from nanoevolve_jax.execution.json_files import Id, read_json, typed, write_json

MARK, KIND = "NANOEVOLVE-RESULT ", "deployment"
FOLDER, RESULT = "deployments", "result.json"  # folder in the cache, file with a job's result
_MOST_BYTES = 64 * 2**20  # largest result after decompression


class _Run(TypedDict):
    val_bpb: float | None
    failure: str | None


class _Result(TypedDict):
    job: str
    candidate: Annotated[list[_Run], msgspec.Meta(min_length=1)]
    baseline: NotRequired[list[_Run]]


class Entry(msgspec.Struct, frozen=True):
    """Job that was sent from this machine."""

    job: Id
    candidate: str  # name that the user gave, such as runs/mine:g002c06
    address: str
    place: str  # absolute path of the result's folder; empty if the job was sent elsewhere
    sent: float  # seconds since 1970

    @property
    def result(self) -> dict[str, Any] | None:
        """The fetched result, or None if there is none or if its file is damaged."""
        try:
            return _checked(read_sealed(Path(self.place) / RESULT, KIND)) if self.place else None
        except ValueError:
            return None

    def keep(self, result: dict[str, Any]) -> Path:
        """Writes a result to the folder of the entry and returns the path of its file.

        Args:
          result: Result that `from_log` returned.
        """
        Path(self.place).mkdir(parents=True, exist_ok=True)
        write_sealed(Path(self.place) / RESULT, KIND, result)
        return Path(self.place) / RESULT


def add(cache: Path, entry: Entry) -> None:
    """Writes an entry, replacing the earlier entry of the same job.

    Args:
      cache: Folder with the registry; created if it is missing.
      entry: Entry to write.

    Raises:
      ValueError: If `entry.job` is not a valid id.
    """
    typed(entry.job, Id, "job")
    (cache / FOLDER).mkdir(parents=True, exist_ok=True)
    write_json(cache / FOLDER / f"{entry.job}.json", msgspec.structs.asdict(entry))


def entries(cache: Path) -> list[Entry]:
    """Returns all entries, oldest first. Damaged entries are skipped.

    Args:
      cache: Folder with the registry.
    """
    valid = []
    for path in (cache / FOLDER).glob("*.json"):
        try:
            valid.append(Entry(**read_json(path, Entry)))
        except (OSError, ValueError, TypeError):
            continue
    return sorted(valid, key=lambda entry: (entry.sent, entry.job))


def find(cache: Path, job: str) -> Entry:
    """Returns the entry of a job.

    Args:
      cache: Folder with the registry.
      job: Id of the job.

    Raises:
      FolderError: If the job was not sent from this machine.
    """
    known = {entry.job: entry for entry in entries(cache)}
    if job not in known:
        near = difflib.get_close_matches(job, known, n=3) or list(known)[-3:] or ["none so far"]
        raise FolderError(must("job", f"be one that was sent from here ({', '.join(near)})", job))
    return known[job]


def to_line(result: dict[str, Any]) -> str:
    """Returns a result as the line that `from_log` reads.

    Args:
      result: Result as JSON, with the id of the job in the field `job`.
    """
    sealed = json.loads(json.dumps({"kind": KIND, "format": FORMAT} | result, allow_nan=False))
    content = json.dumps(sealed | {"seal": seal_of(sealed)}).encode()
    return MARK + base64.b64encode(zlib.compress(content)).decode()


def from_log(text: str, job: str) -> dict[str, Any] | None:
    """Returns the last result in the log of a job, or None if there is none yet.

    Args:
      text: Log of the job.
      job: Id of the job.

    Raises:
      EvidenceError: If the result is damaged or belongs to another job.
    """
    lines = [line for line in text.splitlines(keepends=True) if line.startswith(MARK)]
    if not lines or not lines[-1].endswith("\n"):
        return None
    try:
        packed = base64.b64decode(lines[-1][len(MARK) :], validate=False)
        result = json.loads(zlib.decompressobj().decompress(packed, _MOST_BYTES))
        expected = (KIND, FORMAT, seal_of(result))
        if (result["kind"], result["format"], result["seal"]) != expected:
            raise ValueError("its seal does not fit")
        owner = _checked(result)["job"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, zlib.error) as error:
        raise EvidenceError(f"the result in the job's log is damaged: {error!r}") from None
    if owner != job:
        raise EvidenceError(f"the log of job {job} has the result of job {owner}")
    return result


def _checked(result: dict[str, Any]) -> dict[str, Any]:
    """Returns a result if it is well-formed; ValueError otherwise. A seal alone proves nothing."""
    candidate = typed(result, _Result)["candidate"]
    if len(result.get("baseline", candidate)) != len(candidate):
        raise ValueError("baseline must have as many runs as candidate")
    if any(run["val_bpb"] is None and not run["failure"] for run in candidate):
        raise ValueError("candidate must have a failure where val_bpb is null")
    return result


def summary(result: dict[str, Any]) -> str:
    """Returns a phrase about a result, such as the candidate's gain over its baseline.

    Args:
      result: Result that `from_log` or `Entry.result` returned.
    """
    runs = result["candidate"]
    failures = [run["failure"] for run in runs if run["failure"]]
    if failures:
        return f"failed on {len(failures)} of {len(runs)} seeds: {failures[0]}"
    if "baseline" not in result:
        return f"{sum(run['val_bpb'] for run in runs) / len(runs):.4f} bpb"
    pairs = zip(runs, result["baseline"], strict=True)
    gains = [b["val_bpb"] - a["val_bpb"] for a, b in pairs if b["val_bpb"] is not None]
    if not gains:
        return "its baseline failed on every seed"
    better, mean = sum(gain > 0 for gain in gains), sum(gains) / len(gains)
    return f"gain {mean:+.4f} bpb, better on {better} of {len(gains)} seeds"
