"""JSON documents that show when they were truncated or edited.

A seal is a hash that anyone can compute: it catches accidents and careless edits, not forgers.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.execution.json_files import decode, to_text, typed, write_json
from nanoevolve_jax.execution.plain_files import read_plain

FORMAT = 1


def seal_of(document: dict[str, Any]) -> str:
    """Sixteen hexadecimal digits of everything but the seal itself."""
    content = {name: value for name, value in document.items() if name != "seal"}
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_sealed(path: Path, kind: str, document: dict[str, Any]) -> dict[str, Any]:
    """Writes a whole document or nothing; returns it as it was written.

    Args:
      path: where.
      kind: what the document is, such as 'calibration'.
      document: JSON without NaN or infinities.
    """
    # Through text and back, because a seal must hold for what a reader finds.
    sealed = json.loads(to_text({"kind": kind, "format": FORMAT} | document))
    sealed["seal"] = seal_of(sealed)
    write_json(path, sealed)
    return sealed


def read_sealed(path: Path, kind: str, form: type = Any) -> dict[str, Any]:
    """Reads a document of a kind; the file must be as it was written, byte for byte.

    Args:
      path: Path of the file.
      kind: what the document is, such as 'calibration'.
      form: Type of the document, such as a `TypedDict`.

    Raises:
      EvidenceError: if it is missing, truncated, edited, of another kind or another format.
    """
    wanted = f"{'an' if kind[0] in 'aeiou' else 'a'} {kind} file"
    try:
        content = read_plain(path)
        document = decode(content)
    except FileNotFoundError:
        raise EvidenceError(f"{path} does not exist; allowed: {wanted}") from None
    except (OSError, ValueError) as error:
        raise EvidenceError(f"{path} cannot be read as {wanted}: {error}") from None
    if not isinstance(document, dict) or document.get("kind") != kind:
        found = document.get("kind") if isinstance(document, dict) else document
        raise EvidenceError(f"{path} is {found!r}; allowed: {wanted}")
    if document.get("format") != FORMAT:
        raise EvidenceError(f"{path} has format {document.get('format')!r}; allowed: {FORMAT}")
    if not _fits(document, content):
        raise EvidenceError(f"{path} was changed after it was written: its seal does not fit")
    try:
        return typed(document, form)
    except ValueError as error:
        raise EvidenceError(f"{path} cannot be read as {wanted}: {error}") from None


def _fits(document: dict[str, Any], content: bytes) -> bool:
    try:
        return document.get("seal") == seal_of(document) and to_text(document).encode() == content
    except ValueError:  # a number that no float holds
        return False
