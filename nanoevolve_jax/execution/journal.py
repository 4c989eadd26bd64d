"""Journals: append-only files of JSON lines, each sealed together with the line before it.

The seal of a line is the SHA-256 of the seal before it and of the line's own content. So no line
can be edited, moved, repeated, replaced by one of another journal, or taken out of the middle
without the next reader noticing. A line is on disk before anything relies on it. A process killed
in the middle of a write leaves a last line without its newline, which no reader counts.

Anyone can compute a seal. It shows damage and careless edits; it does not stop a forger, who writes
every seal anew. Lines taken off the end are not noticed here either, because a journal may always
have ended there.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from nanoevolve_jax.execution.json_files import decode
from nanoevolve_jax.execution.plain_files import (
    FileError,
    open_in_place,
    read_plain,
    write_whole,
)

Document = dict[str, Any]
_CHUNK = 1 << 16


class Journal(NamedTuple):
    """What a journal holds."""

    documents: list[Document]  # one per complete line, without seals
    ends: list[int]  # bytes up to the end of each line
    seals: list[str]  # of each line
    torn: int  # bytes of an unfinished last line

    @property
    def size(self) -> int:
        """Bytes of the complete lines."""
        return self.ends[-1] if self.ends else 0


def read(path: Path, *, older: bool = False) -> Journal:
    """Reads the complete lines of a journal; blank lines at its end count for nothing.

    Args:
      path: Path of the journal; a missing file is an empty journal.
      older: Whether lines may lack a seal, or have one of their content alone, as in run folders of
        formats 1 and 2.

    Raises:
      FileError: If it is not a regular file, or a line is not JSON or does not fit its seal.
      OSError: If it cannot be read.
    """
    try:
        content = read_plain(path)
    except FileNotFoundError:
        return Journal([], [], [], 0)
    *lines, tail = content.split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    documents, ends, seals = [], [], []
    for number, line in enumerate(lines, start=1):
        try:
            document = decode(line)
            if not isinstance(document, dict):
                raise ValueError("it must be a JSON object")
            seals.append(_checked(document, seals[-1] if seals else "", line, older))
        except ValueError as error:
            raise FileError(f"{path} line {number} is damaged: {error}") from None
        documents.append(document)
        ends.append((ends[-1] if ends else 0) + len(line) + 1)
    return Journal(documents, ends, seals, len(tail) if tail.strip() else 0)


def _checked(document: Document, previous: str, line: bytes, older: bool) -> str:
    """Removes the seal from a document and returns it, once it is found to fit."""
    seal = document.pop("seal", None)
    if older and (seal is None or seal == _own_seal(document)):
        return previous
    if _line(document, previous) != (line + b"\n", seal):
        raise ValueError("its seal must fit it and the line before it; it was changed or moved")
    return seal


def _own_seal(document: Document) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


def _line(document: Document, previous: str) -> tuple[bytes, str]:
    text = json.dumps(document, allow_nan=False)
    seal = hashlib.sha256((previous + text).encode()).hexdigest()
    return json.dumps(document | {"seal": seal}).encode() + b"\n", seal


def _lines(documents: Iterable[Document], previous: str) -> tuple[bytes, str]:
    """The lines of documents, and the seal of the last one."""
    lines = []
    for document in documents:
        line, previous = _line(document, previous)
        lines.append(line)
    return b"".join(lines), previous


def append(path: Path, documents: Iterable[Document]) -> str:
    """Appends documents in one write and syncs them; whatever a killed process left is cut off.

    Returns:
      The seal of the last line; "" for an empty journal.

    Raises:
      FileError: If the path is not a file of this folder alone, or its last line has no seal.
      ValueError: If a document holds NaN or an infinity.
    """
    with open_in_place(path) as file:
        size, last = _last_line(file)
        seal = ""
        if last:
            try:
                seal = decode(last)["seal"]
            except (ValueError, KeyError, TypeError):
                raise FileError(f"{path} must end with a sealed line, got another") from None
        lines, seal = _lines(documents, seal)
        file.truncate(size)
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())
    return seal


def _last_line(file: BinaryIO) -> tuple[int, bytes]:
    """The bytes up to the end of the last complete line that is not blank, and that line."""
    end, tail = file.seek(0, os.SEEK_END), b""
    start = end
    while start > 0:
        start = max(0, start - max(_CHUNK, len(tail)))
        file.seek(start)
        tail = file.read(end - start)
        complete = tail[: tail.rfind(b"\n") + 1].rstrip()
        if b"\n" in complete:
            break
    complete = tail[: tail.rfind(b"\n") + 1].rstrip()
    if not complete:
        return 0, b""
    return start + len(complete) + 1, complete[complete.rfind(b"\n") + 1 :]


def cut(path: Path, size: int) -> None:
    """Truncates a journal to a number of bytes and syncs it."""
    with open_in_place(path) as file:
        file.truncate(size)
        os.fsync(file.fileno())


def rewrite(path: Path, documents: Iterable[Document]) -> None:
    """Replaces a whole journal, or leaves it as it is; every line is sealed anew."""
    write_whole(path, _lines(documents, "")[0])
