"""Files and folders that appear complete or not at all, even if the process is killed."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from nanoevolve_jax.data.errors import CorpusError

_LOCK = "building.lock"
_YOUNG_SECONDS = 3600


def expanded(path: str | Path) -> Path:
    """Returns a path with its `~` expanded.

    Raises:
      CorpusError: If the home folder is unknown.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise CorpusError(
            f"a path that begins with ~ must name a user who has a home folder, got {str(path)!r}"
        ) from None


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces `path` in one step: a reader sees either the old or the new content."""
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
    """Holds an exclusive lock on `path`, which the system releases when the process ends."""
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
    """Yields a new temporary folder in `parent`, and removes it at the end.

    The builder holds a lock on a file in the folder while it works. A folder without a locked
    file was left by a killed builder.
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
    """Renames a finished `folder` to `target` in one step.

    Returns:
      False if `target` exists because another builder was faster; its folder is kept.
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
    """Moves a damaged folder away in one step, then deletes it."""
    aside = Path(tempfile.mkdtemp(prefix=".building-discarded-", dir=folder.parent))
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, aside / "damaged")
    shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(parent: Path) -> None:
    """Deletes the temporary folders of builders that no longer run."""
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
        # The folder is new and not locked yet, or unlocked and about to be renamed.
        return time.time() - folder.stat().st_mtime > _YOUNG_SECONDS
