"""Integrity check of a job folder that was sent from another machine.

This module imports only the standard library and the project's error class, so that no other code
in the folder runs before the check.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from nanoevolve_jax.errors import UserError

JOB, FORMAT, PREFIX = "job.json", 2, "nano-"


class FolderError(UserError):
    """Error about a job folder that is damaged or cannot be created."""


def job_id(content: bytes) -> str:
    """Returns the id of a job.

    Args:
      content: Content of the job's `job.json`.
    """
    return f"{PREFIX}{hashlib.sha256(content).hexdigest()[:16]}"


def digests(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 digest of every file in a folder by its relative path.

    Args:
      folder: Job folder.

    Raises:
      FolderError: If the folder holds a link or a device.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise FolderError(f"{name} of a job's folder must be a file, not a link or a device")
        if path.is_file():
            files[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return files


def read_intact(folder: Path, job: str) -> dict[str, Any]:
    """Returns the `job.json` of a folder after checking every file against its digest.

    Args:
      folder: Job folder.
      job: Id of the job.

    Raises:
      FolderError: If a file is missing, changed or unknown, or the folder belongs to another job.
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
