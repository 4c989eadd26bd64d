"""Whether a candidate's folder is as it was made; only Python's own library, see `remote.py`."""

import hashlib
import json
from pathlib import Path
from typing import Any

from nanoevolve_jax.evidence.errors import EvidenceError

JOB, FORMAT = "job.json", 1
PREFIX, _ID_DIGITS = "nano-", 16  # of ids


class FolderError(EvidenceError):
    """A candidate's folder that cannot be made, or that is not as it was made."""


def job_id(content: bytes) -> str:
    """The id of a job from the bytes of its `job.json`."""
    return f"{PREFIX}{hashlib.sha256(content).hexdigest()[:_ID_DIGITS]}"


def read_intact(folder: Path, job: str) -> dict[str, Any]:
    """The `job.json` of a folder, every byte of which is what the job's id stands for.

    Args:
      folder: on any machine.
      job: the id that it was submitted under.

    Raises:
      FolderError: if a file is missing, changed or too many.
    """
    try:
        content = (folder / JOB).read_bytes()
    except OSError as error:
        raise FolderError(f"{JOB} of job {job} cannot be read: {error.strerror}") from None
    if job_id(content) != job:
        raise FolderError(f"{JOB} of job {job} is not the one that was submitted")
    document = json.loads(content)
    if document["format"] != FORMAT:
        raise FolderError(f"{JOB} has format {document['format']!r}; allowed: {FORMAT}")
    found, wanted = digests(folder), document["files"]
    found.pop(JOB)
    for name in sorted(found | wanted):
        if name not in found or name not in wanted:
            what = "missing from" if name in wanted else "no file of"
            raise FolderError(f"{name} is {what} the folder of job {job}")
        if found[name] != wanted[name]:
            raise FolderError(f"{name} is not the file that {JOB} of job {job} names")
    return document


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file by its place.

    Raises:
      FolderError: if something is neither a plain file nor a folder.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise FolderError(f"{name} of a job's folder is a link or a device; allowed: files")
        if path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
