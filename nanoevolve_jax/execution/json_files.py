"""Numbers that JSON has no word for, and files that are written whole or not at all."""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def finite_or_null(values: Any) -> Any:
    """Arrays, mappings and tuples as JSON has them, with null for what is not finite."""
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
    """The text of a file; ValueError for NaN and infinities, which JSON has no word for."""
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def write_whole(path: Path, text: str) -> None:
    """Writes a whole file or nothing: to a neighbour, synced, then renamed."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(scratch, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink()  # a full disk needs the room
        raise


def write_json(path: Path, document: Any) -> None:
    """Writes a document whole or not at all."""
    write_whole(path, to_text(document))
