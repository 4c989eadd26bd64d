"""The local book of deployments: one JSON a job, by which it is found whoever asks for it later."""

import difflib
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from nanoevolve_jax.codegen.deployment.intact import FolderError
from nanoevolve_jax.codegen.deployment.reply import KIND, require_form
from nanoevolve_jax.evidence.sealed import read_sealed, write_sealed
from nanoevolve_jax.execution.json_files import Id, is_id, read_json, write_json

FOLDER = "deployments"  # in the cache
RESULT = "result.json"


class _EntryDocument(TypedDict):
    job: Id
    candidate: str
    address: str
    place: str
    sent: float


class Entry(NamedTuple):
    """A job that was sent from here."""

    job: str
    candidate: str  # what it was called, such as runs/mine:g002c06
    address: str
    place: str  # the folder of its result, absolute; empty: it was sent from elsewhere
    sent: float  # seconds since 1970

    @property
    def result(self) -> dict[str, Any] | None:
        """Its result, if that was fetched; one that was damaged since counts as not fetched."""
        if not self.place:
            return None
        try:
            found = read_sealed(Path(self.place) / RESULT, KIND)
            require_form(found)
        except ValueError:
            return None
        return found

    def keep(self, result: dict[str, Any]) -> Path:
        """Writes its result; returns where."""
        path = Path(self.place) / RESULT
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(path, KIND, result)
        return path


def enter(cache: Path, entry: Entry) -> None:
    """Writes an entry, or replaces that of the same job.

    Raises:
      FolderError: if the job's id is not one, which would lead to another folder.
    """
    if not is_id(entry.job):
        raise FolderError(f"job must be an id (letters, digits, _ . -), got {entry.job!r}")
    (cache / FOLDER).mkdir(parents=True, exist_ok=True)
    write_json(cache / FOLDER / f"{entry.job}.json", entry._asdict())


def find(cache: Path, job: str) -> Entry:
    """The entry of a job.

    Raises:
      FolderError: if there is none.
    """
    known = {entry.job: entry for entry in entries(cache)}
    if job not in known:
        near = difflib.get_close_matches(job, known, n=3) or list(known)[-3:]
        raise FolderError(
            f"job is {job!r}; allowed: one that was deployed from here, such as {', '.join(near)}"
            if near
            else f"job is {job!r}; allowed: one that was deployed, and {cache / FOLDER} knows none"
        )
    return known[job]


def entries(cache: Path) -> list[Entry]:
    """All entries, the oldest first; damaged ones are left out."""
    found = []
    for path in sorted((cache / FOLDER).glob("*.json")):
        try:
            entry = Entry(**read_json(path, _EntryDocument))
        except (OSError, ValueError, TypeError):
            continue
        if entry.job == path.stem:
            found.append(entry)
    return sorted(found, key=lambda entry: (entry.sent, entry.job))
