"""Journals, which are append-only files of JSON lines chained by hashes.

The seal of a line is the SHA-256 digest of the previous line's seal and the line's own content. A
reader therefore detects every line that was edited, moved, repeated, copied from another journal or
removed from the middle. Appended lines are synced to disk before `append` returns. A process killed
in the middle of a write leaves a last line without a newline, which readers ignore.

Seals detect damage and careless edits but not forgery, because anyone can compute them. They do not
reveal lines removed from the end either, because a shorter journal is also valid.
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
    """Content of a journal."""

    documents: list[Document]  # document of each complete line, without its seal
    ends: list[int]  # number of bytes up to the end of each line
    seals: list[str]  # seal of each line
    torn: int  # number of bytes in an unfinished last line

    @property
    def size(self) -> int:
        """Number of bytes in the complete lines."""
        return self.ends[-1] if self.ends else 0


def read(path: Path, *, older: bool = False) -> Journal:
    """Reads the complete lines of a journal and ignores blank lines at its end.

    Args:
      path: Path of the journal. A missing file is read as an empty journal.
      older: Whether a line may lack a seal or have a seal of its own content alone, as in run
        folders of formats 1 and 2.

    Returns:
      Content of the journal.

    Raises:
      FileError: If the path is not a regular file, or a line is not JSON or does not match its
        seal.
      OSError: If the file cannot be read.
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
    """Checks the seal of a document, removes it from the document and returns it."""
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
    """Returns the lines of documents and the seal of the last line."""
    lines = []
    for document in documents:
        line, previous = _line(document, previous)
        lines.append(line)
    return b"".join(lines), previous


def append(path: Path, documents: Iterable[Document]) -> str:
    """Appends documents in one write and syncs the file.

    An unfinished last line, which a killed process may have left, is removed first.

    Args:
      path: Path of the journal, which is created if it is missing.
      documents: Documents to append, without seals.

    Returns:
      Seal of the last line, or an empty string for an empty journal.

    Raises:
      FileError: If the path is a link, has a second hard link or is not a regular file, or the last
        line has no seal.
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
    """Returns the end in bytes of the last complete line that is not blank, and that line."""
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
    """Truncates a journal and syncs it.

    Args:
      path: Path of the journal.
      size: Number of bytes to keep.

    Raises:
      FileError: If the path is a link, has a second hard link or is not a regular file.
    """
    with open_in_place(path) as file:
        file.truncate(size)
        os.fsync(file.fileno())


def rewrite(path: Path, documents: Iterable[Document]) -> None:
    """Replaces all lines of a journal atomically and computes new seals.

    Args:
      path: Path of the journal.
      documents: Documents to write, without seals.
    """
    write_whole(path, _lines(documents, "")[0])
