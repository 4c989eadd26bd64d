"""Reading and writing of JSON, with strict decoding, typed documents and non-finite numbers."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np

from nanoevolve_jax.execution.plain_files import FileError, read_plain, write_whole

Id = Annotated[
    str,
    msgspec.Meta(pattern=r"\A(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\Z", description="an id"),
]
"""A name that is also the name of a file: it can lead to no other folder."""
Count = Annotated[int, msgspec.Meta(ge=0)]
MOST_DEPTH = 64  # largest nesting depth of lists and objects
_MOST_INTEGER = 1 << 63
_T = TypeVar("_T")


# Reading ------------------------------------------------------------------------------------


def decode(content: bytes | str) -> Any:
    """Decodes a JSON text strictly.

    The function rejects NaN, infinities, numbers outside the range of a float, integers of more
    than 64 bits, repeated names, unpaired surrogates and deep nesting. Python's own decoder accepts
    some of these and raises other errors for the rest.

    Args:
      content: JSON text, as UTF-8 if it is bytes.

    Returns:
      Decoded document.

    Raises:
      ValueError: If the content is not JSON or holds a rejected value.
    """
    text = content.decode() if isinstance(content, bytes) else content
    try:
        document = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_float=_finite,
            parse_int=_integer,
            parse_constant=_finite,
        )
    except RecursionError:
        raise ValueError(f"it must be nested at most {MOST_DEPTH} deep") from None
    _require_shallow(document, MOST_DEPTH)
    if "\\ud" in text.lower():
        json.dumps(document, ensure_ascii=False).encode()
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{twice!r} must stand once in an object, got it twice")
    return document


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"numbers must be finite, got {text[:40]}")
    return value


def _integer(text: str) -> int:
    if len(text) > 20 or not -_MOST_INTEGER <= (value := int(text)) < _MOST_INTEGER:
        raise ValueError(f"integers must have at most 64 bits, got {text[:40]}")
    return value


def _require_shallow(node: Any, left: int) -> None:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        if isinstance(child, dict | list):
            if left == 1:
                raise ValueError(f"it must be nested at most {MOST_DEPTH} deep")
            _require_shallow(child, left - 1)


def typed(document: Any, kind: type[_T], name: str = "") -> _T:
    """Returns a decoded document after checking it against a type.

    Args:
      document: Decoded JSON.
      kind: A `TypedDict` or any other type that msgspec supports.
      name: Field of a larger document that holds this document, for error messages.

    Raises:
      ValueError: If the document has another form. The message names the field.
    """
    try:
        msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise ValueError(_in_words(str(error), name)) from None
    return document


def is_id(name: Any) -> bool:
    """Returns whether a value is a valid id of a candidate, a run or a job.

    Args:
      name: Value to check.
    """
    try:
        typed(name, Id)
    except ValueError:
        return False
    return True


_MESSAGE = re.compile(r"(?P<what>.*?)(?: - at `(?:key in )?\$?\.?(?P<field>.*)`)?", re.DOTALL)
_EXPECTED = re.compile(r"Expected (?P<wanted>.*?)(?:, got (?P<got>.*))?", re.DOTALL)


def _in_words(message: str, name: str) -> str:
    """Returns the message of a validation error in the form `FIELD must be ..., got ...`."""
    what, field = _MESSAGE.fullmatch(message).group("what", "field")
    place = ".".join(part for part in (name, field) if part) or "the document"
    if missing := re.fullmatch(r"Object missing required field `(.*)`", what):
        inside = ".".join(part for part in (name, field, missing[1]) if part)
        return f"{inside} must be there, got nothing"
    if expected := _EXPECTED.fullmatch(what):
        wanted, got = (x and x.replace("`", "") for x in expected.group("wanted", "got"))
        wanted = "an id (letters, digits, _ . -)" if "matching regex" in wanted else wanted
        return f"{place} must be {wanted}" + (f", got {got}" if got else "")
    return f"{place} must be valid: {what}"


def read_json(path: Path, kind: type[_T] = Any) -> _T:
    """Reads a JSON file.

    Args:
      path: Path of a regular file.
      kind: Type of the document.

    Returns:
      Decoded document.

    Raises:
      FileError: If the path is not a regular file, or its content is not JSON of the given type.
        The message names the file and the field.
      OSError: If the file is missing or cannot be read.
    """
    content = read_plain(path)
    try:
        return typed(decode(content), kind)
    except ValueError as error:
        raise FileError(f"{path} cannot be read: {error}") from None


# Writing ------------------------------------------------------------------------------------


def finite_or_null(values: Any) -> Any:
    """Returns values in a form that JSON can represent.

    Args:
      values: Nested arrays, mappings, named tuples, lists, tuples and scalars.

    Returns:
      Nested dicts and lists, with None in place of NaN and infinities.
    """
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if hasattr(values, "_asdict"):
        values = values._asdict()
    if isinstance(values, Mapping):
        return {name: finite_or_null(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [finite_or_null(value) for value in values]
    if isinstance(values, float | np.floating):
        return float(values) if math.isfinite(values) else None
    return values


def to_text(document: Any) -> str:
    """Returns the content of a JSON file.

    Args:
      document: Document to encode.

    Raises:
      ValueError: If the document holds NaN or an infinity, which JSON cannot represent.
    """
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def write_json(path: Path, document: Any) -> None:
    """Writes a JSON file atomically.

    Args:
      path: Path of the file.
      document: Document to write.

    Raises:
      ValueError: If the document holds NaN or an infinity, which JSON cannot represent.
    """
    write_whole(path, to_text(document))
