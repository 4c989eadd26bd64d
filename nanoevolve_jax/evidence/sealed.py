"""JSON documents with a seal, which reveals truncation and edits.

A seal is a hash that anyone can compute. It detects accidents and careless edits, but not forgery.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from nanoevolve_jax.errors import must
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.execution.json_files import decode, to_text, typed, write_json
from nanoevolve_jax.execution.plain_files import read_plain

FORMAT = 1


def seal_of(document: dict[str, Any]) -> str:
    """Returns the seal of a document.

    Args:
      document: JSON object. Its field `seal` is ignored.

    Returns:
      Hash of the other fields; 16 hexadecimal digits.
    """
    content = {name: value for name, value in document.items() if name != "seal"}
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_sealed(path: Path, kind: str, document: dict[str, Any]) -> dict[str, Any]:
    """Writes a document with a seal atomically.

    Args:
      path: Path of the file.
      kind: Kind of the document, such as 'calibration'.
      document: JSON object without NaN or infinities.

    Returns:
      The document as `read_sealed` returns it.
    """
    # The seal must match the document after it has been converted to text and back.
    sealed = json.loads(to_text({"kind": kind, "format": FORMAT} | document))
    sealed["seal"] = seal_of(sealed)
    write_json(path, sealed)
    return sealed


def read_sealed(path: Path, kind: str, form: type = Any) -> dict[str, Any]:
    """Reads a document and checks that the file is unchanged, byte for byte.

    Args:
      path: Path of the file.
      kind: Kind of the document, such as 'calibration'.
      form: Type of the document, such as a `TypedDict`.

    Returns:
      The document, including its seal.

    Raises:
      EvidenceError: If the file is missing, truncated or edited, or has another kind or format.
    """
    wanted = f"{'an' if kind[0] in 'aeiou' else 'a'} {kind} file"
    try:
        content = read_plain(path)
        document = decode(content)
    except FileNotFoundError:
        raise EvidenceError(f"{path} does not exist; it must be {wanted}") from None
    except (OSError, ValueError) as error:
        raise EvidenceError(f"{path} cannot be read as {wanted}: {error}") from None
    if not isinstance(document, dict) or document.get("kind") != kind:
        own = document.get("kind") if isinstance(document, dict) else document
        raise EvidenceError(must(str(path), f"be {wanted}", own))
    if document.get("format") != FORMAT:
        raise EvidenceError(must(f"format of {path}", f"be {FORMAT}", document.get("format")))
    if not _fits(document, content):
        raise EvidenceError(f"{path} was changed after it was written: its seal does not fit")
    try:
        return typed(document, form)
    except ValueError as error:
        raise EvidenceError(f"{path} cannot be read as {wanted}: {error}") from None


def _fits(document: dict[str, Any], content: bytes) -> bool:
    try:
        return document.get("seal") == seal_of(document) and to_text(document).encode() == content
    except ValueError:  # a number that a float cannot represent
        return False
