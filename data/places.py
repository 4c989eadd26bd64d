"""Where this machine keeps its texts: the folder of each `parquet:DIR` used, by fingerprint.

A document from elsewhere names a text by its fingerprint. Its path is a path of another machine, so
the folder is looked up here.
"""

import re
from pathlib import Path

from nanoevolve_jax.data.files import expanded, write_atomically

FOLDER = "corpora"  # in the cache
_FINGERPRINT = re.compile(r"[0-9a-f]{8,64}")


def remember(cache_dir: str | Path, fingerprint: str, folder: str | Path) -> None:
    """Records where the text with a fingerprint lies; the latest place counts."""
    path = expanded(cache_dir) / FOLDER / fingerprint
    content = str(expanded(folder).absolute()).encode()
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)


def find(cache_dir: str | Path, fingerprint: object) -> Path | None:
    """Returns the folder of the text with a fingerprint, or None if it is not known here.

    Args:
      cache_dir: Cache folder of this machine.
      fingerprint: Fingerprint as a document states it, of any type.
    """
    if not isinstance(fingerprint, str) or not _FINGERPRINT.fullmatch(fingerprint):
        return None
    try:
        content = (expanded(cache_dir) / FOLDER / fingerprint).read_bytes()
    except OSError:
        return None
    folder = Path(content.decode(errors="surrogateescape"))
    return folder if folder.is_dir() else None
