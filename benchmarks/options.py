"""The flags that benchmarks share, defined once so that tests can import several together."""

import json
from pathlib import Path
from typing import Any

from absl import flags

CACHE = flags.DEFINE_string("cache", "cache", "folder of packed rows")
_OUT = flags.DEFINE_string("out", "", "JSON file to write")


def write(document: dict[str, Any]) -> None:
    """Writes the document to `--out`, if it was given."""
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(document, indent=2) + "\n")
