"""What a job gives, as one marked line of its log: results need no file system that is shared."""

import base64
import json
import zlib
from typing import Annotated, Any, NotRequired, TypedDict

import numpy as np
from msgspec import Meta

from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.sealed import FORMAT, seal_of
from nanoevolve_jax.execution.json_files import typed

MARK = "NANOEVOLVE-RESULT "
KIND = "deployment"
_MOST_BYTES = 64 * 2**20  # of a result once it is unpacked


class _Run(TypedDict):
    val_bpb: float | None
    failure: str | None


class Result(TypedDict):
    """The form of a result, as far as every reader needs it."""

    job: str
    candidate: Annotated[list[_Run], Meta(min_length=1)]
    baseline: NotRequired[list[_Run]]


def to_line(document: dict[str, Any]) -> str:
    """The line of a result: sealed, compressed, in letters that every log keeps.

    Args:
      document: JSON without NaN or infinities.
    """
    sealed = {"kind": KIND, "format": FORMAT} | document
    sealed = json.loads(json.dumps(sealed, allow_nan=False))
    sealed["seal"] = seal_of(sealed)
    return MARK + base64.b64encode(zlib.compress(json.dumps(sealed).encode())).decode()


def from_log(text: str, job: str) -> dict[str, Any] | None:
    """The result of a job in its log; None if there is none yet. The last one counts.

    Raises:
      EvidenceError: if it was cut off or changed, or is another job's.
    """
    lines = [line for line in text.splitlines(keepends=True) if line.startswith(MARK)]
    if not lines or not lines[-1].endswith("\n"):
        return None
    try:
        unpacker = zlib.decompressobj()
        packed = base64.b64decode(lines[-1][len(MARK) :], validate=False)
        document = json.loads(unpacker.decompress(packed, _MOST_BYTES))
        intact = document["seal"] == seal_of(document)
        kind, of_job = (document["kind"], document["format"]), document["job"]
        require_form(document)
    except (ValueError, KeyError, TypeError, RecursionError, zlib.error) as error:
        raise EvidenceError(f"the result in the job's log is damaged: {error!r}") from None
    if not intact or kind != (KIND, FORMAT):
        raise EvidenceError("the result in the job's log was changed: its seal does not fit")
    if of_job != job:
        raise EvidenceError(f"the log of job {job} has the result of job {of_job}")
    return document


def require_form(document: dict[str, Any]) -> None:
    """Refuses a result of another form, which anyone can seal.

    Raises:
      ValueError: naming what is wrong.
    """
    found = typed(document, Result)
    if len(found.get("baseline", found["candidate"])) != len(found["candidate"]):
        raise ValueError("baseline must have a run for each of the candidate's")
    if any(run["val_bpb"] is None and not run["failure"] for run in found["candidate"]):
        raise ValueError("candidate must have a failure where val_bpb is null")


def pack(array: np.ndarray) -> dict[str, Any]:
    """An array of float32 as JSON; every bit survives."""
    content = np.ascontiguousarray(array, np.float32).tobytes()
    return {"shape": list(array.shape), "float32": base64.b64encode(content).decode()}


def unpack(document: dict[str, Any]) -> np.ndarray:
    """The array of what `pack` made."""
    content = base64.b64decode(document["float32"])
    return np.frombuffer(content, np.float32).reshape(document["shape"]).copy()


def in_words(document: dict[str, Any]) -> str:
    """A result in a few words: what the candidate gains over its baseline on the same seeds."""
    runs = document["candidate"]
    failed = [run["failure"] for run in runs if run["failure"]]
    if failed:
        return f"failed on {len(failed)} of {len(runs)} seeds: {failed[0]}"
    if "baseline" not in document:
        return f"{sum(run['val_bpb'] for run in runs) / len(runs):.4f} bpb"
    pairs = zip(runs, document["baseline"], strict=True)
    pairs = [(run["val_bpb"], base["val_bpb"]) for run, base in pairs]
    gains = [base - own for own, base in pairs if base is not None]
    if not gains:
        return "its baseline failed on every seed"
    better = sum(gain > 0 for gain in gains)
    mean = sum(gains) / len(gains)
    return f"gain {mean:+.4f} bpb, better on {better} of {len(gains)} seeds"
