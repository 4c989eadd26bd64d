"""Integrity of a job's folder that comes from another machine.

It imports the standard library only, so that nothing else of the folder runs before the check.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from nanoevolve_jax.errors import UserError

JOB, FORMAT, PREFIX = "job.json", 2, "nano-"


class FolderError(UserError):
    """A job's folder that is damaged or cannot be made."""


def job_id(content: bytes) -> str:
    """Returns the id of a job from the bytes of its `job.json`."""
    return f"{PREFIX}{hashlib.sha256(content).hexdigest()[:16]}"


def digests(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file by its relative path; FolderError for links and devices."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise FolderError(f"{name} of a job's folder must be a file, not a link or a device")
        if path.is_file():
            files[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return files


def read_intact(folder: Path, job: str) -> dict[str, Any]:
    """Returns the `job.json` of a folder after checking every file against its hash.

    Raises:
      FolderError: If a file is missing, changed or unknown, or the folder is another job's.
    """
    try:
        content = (folder / JOB).read_bytes()
    except OSError as error:
        raise FolderError(f"{JOB} of job {job} cannot be read: {error.strerror}") from None
    if job_id(content) != job:
        raise FolderError(f"{JOB} must be the one that job {job} was sent with; it was changed")
    document = json.loads(content)
    if document["format"] != FORMAT:
        raise FolderError(f"format of {JOB} must be {FORMAT}, got {document['format']!r}")
    files, expected = digests(folder), document["files"]
    files.pop(JOB)
    for name in sorted(files | expected):
        if name not in expected:
            raise FolderError(f"{name} must not be in the folder of job {job}")
        if files.get(name) != expected[name]:
            raise FolderError(f"{name} must be as job {job} was sent; it was changed or lost")
    return document
