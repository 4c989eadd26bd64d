"""Folders of the corpora that this machine has used, by fingerprint.

A run folder or a card from another machine identifies its corpus by fingerprint, because a path of
that machine means nothing here.
"""

import re
from pathlib import Path

from nanoevolve_jax.data.files import expanded, write_atomically

FOLDER = "corpora"  # in the cache
_FINGERPRINT = re.compile(r"[0-9a-f]{8,64}")


def remember(cache_dir: str | Path, fingerprint: str, folder: str | Path) -> None:
    """Records the folder of the corpus with a fingerprint, in place of an earlier one."""
    path = expanded(cache_dir) / FOLDER / fingerprint
    content = str(expanded(folder).absolute()).encode()
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)


def find(cache_dir: str | Path, fingerprint: object) -> Path | None:
    """Returns the folder of the corpus with a fingerprint, or None if it is unknown here.

    Args:
      cache_dir: Cache folder of this machine.
      fingerprint: Fingerprint from an untrusted document; any type.
    """
    if not isinstance(fingerprint, str) or not _FINGERPRINT.fullmatch(fingerprint):
        return None
    try:
        content = (expanded(cache_dir) / FOLDER / fingerprint).read_bytes()
    except OSError:
        return None
    folder = Path(content.decode(errors="surrogateescape"))
    return folder if folder.is_dir() else None
