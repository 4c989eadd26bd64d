"""Files and folders that are written atomically, and the folders of texts on this machine."""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from nanoevolve_jax.data import CorpusError
from nanoevolve_jax.errors import must

CORPORA = "corpora"  # folder in the cache with the path of each text, named by its fingerprint
_LOCK = "building.lock"
_YOUNG_SECONDS = 3600
_FINGERPRINT = re.compile(r"[0-9a-f]{8,64}")


def expanded(path: str | Path) -> Path:
    """Returns a path with its ~ expanded; CorpusError if that home folder is unknown."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        rule = "name a user who has a home folder"
        raise CorpusError(must("a path that begins with ~", rule, str(path))) from None


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `content` to `path`; readers see either the old file or the complete new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock on `path`, which the system releases if the process dies."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    with os.fdopen(os.open(path, flags, 0o666), "rb+", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sha256_file(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def building(parent: Path, name: str) -> Iterator[Path]:
    """Creates a temporary folder for a folder to build, and removes it at the end.

    The builder locks a file in it for as long as it lives, which distinguishes folders in use from
    those of killed builders.
    """
    parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(parent)
    folder = Path(tempfile.mkdtemp(prefix=f".building-{name}-", dir=parent))
    try:
        with open(folder / _LOCK, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, target: Path) -> bool:
    """Renames a finished `folder` to `target` atomically.

    Returns:
      False if another builder was faster: its `target` stays.
    """
    (folder / _LOCK).unlink(missing_ok=True)
    for path in sorted(folder.iterdir()):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    try:
        os.rename(folder, target)
    except OSError:
        if target.is_dir():
            return False
        raise
    return True


def discard(folder: Path) -> None:
    """Moves a damaged folder away atomically, then deletes it."""
    aside = Path(tempfile.mkdtemp(prefix=".building-discarded-", dir=folder.parent))
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, aside / "damaged")
    shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(parent: Path) -> None:
    """Deletes temporary folders whose builder has died."""
    for folder in parent.glob(".building-*"):
        with contextlib.suppress(OSError):
            if _abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _abandoned(folder: Path) -> bool:
    try:
        with open(folder / _LOCK, "rb+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        return False
    except FileNotFoundError:
        # It is either not locked yet, or unlocked and about to be renamed.
        return time.time() - folder.stat().st_mtime > _YOUNG_SECONDS


# Folders of texts --------------------------------------------------------------------------


def remember_corpus(cache_dir: str | Path, fingerprint: str, folder: str | Path) -> None:
    """Records the folder of the text with a fingerprint; the latest folder counts.

    A document from another machine names its text by fingerprint, because paths differ.
    """
    path = expanded(cache_dir) / CORPORA / fingerprint
    content = str(expanded(folder).absolute()).encode()
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)


def find_corpus(cache_dir: str | Path, fingerprint: object) -> Path | None:
    """Returns the folder of the text with a fingerprint, or None if it is unknown on this machine.

    Args:
      cache_dir: Cache folder of this machine.
      fingerprint: Fingerprint as stated in a document; may be of any type.
    """
    if not isinstance(fingerprint, str) or not _FINGERPRINT.fullmatch(fingerprint):
        return None
    try:
        content = (expanded(cache_dir) / CORPORA / fingerprint).read_bytes()
    except OSError:
        return None
    folder = Path(content.decode(errors="surrogateescape"))
    return folder if folder.is_dir() else None
