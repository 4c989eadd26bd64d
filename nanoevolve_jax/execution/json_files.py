"""JSON files that are written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any


def to_text(document: Any) -> str:
    """The text of a file; ValueError for NaN and infinities, which JSON has no word for."""
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def write_json(path: Path, document: Any) -> None:
    """Writes a whole file or nothing: to a neighbour, synced, then renamed."""
    text = to_text(document)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with open(scratch, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)
