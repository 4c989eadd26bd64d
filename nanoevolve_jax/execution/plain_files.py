"""Access to regular files that rejects links, pipes and devices.

A run folder may come from another person. The user chooses the path of the folder, so the folder
itself and its parents may be links. Inside the folder, files are never written through a link, so
that files outside cannot be changed, and only regular files are read, so that a reader cannot block
on a pipe.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from nanoevolve_jax.errors import UserError

MOST_BYTES = 1 << 30  # default size limit for files that are read into memory
_IN_PLACE = (".jsonl", ".lock")  # suffixes of files that are written in place, not replaced


class FileError(UserError):
    """Error about a file or folder that must not be used. Its message gives the path and reason."""


def open_plain(path: Path, flags: int, *, follow: bool = False) -> int:
    """Opens a regular file and returns its descriptor.

    Args:
      path: Path of the file.
      flags: Flags of `os.open`.
      follow: Whether the path may be a link to a regular file.

    Raises:
      FileError: If the path is not a regular file.
      OSError: If the file is missing or cannot be opened.
    """
    flags |= os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ENODEV):
            raise _unlike("regular file", path) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _unlike("regular file", path)
    return descriptor


def read_plain(path: Path, most: int = MOST_BYTES, *, follow: bool = True) -> bytes:
    """Returns the bytes of a regular file.

    Args:
      path: Path of the file.
      most: Largest allowed size in bytes.
      follow: Whether the path may be a link to a regular file.

    Raises:
      FileError: If the path is not a regular file, or the file is larger than `most`.
      OSError: If the file is missing or cannot be read.
    """
    with os.fdopen(open_plain(path, os.O_RDONLY, follow=follow), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(most + 1) if size <= most else b""
    if max(size, len(content)) > most:
        raise FileError(f"{path} must have at most {most:,} bytes, got {size:,}")
    return content


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file atomically, by writing and syncing a temporary file and then renaming it.

    Args:
      path: Path of the file, which is replaced if it exists.
      content: Content to write. Text is encoded as UTF-8.
    """
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yields a temporary file that replaces `path` at the end of the block.

    If the block raises an exception, the temporary file is removed and `path` is unchanged.

    Args:
      path: Path of the file to replace or create.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.unlink(missing_ok=True)
    try:
        # An exclusive open always creates the file, so it cannot follow a link.
        with open(scratch, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink()  # frees the space, which matters on a full disk
        raise


def open_in_place(path: Path) -> BinaryIO:
    """Opens a file for reading, truncating and appending, and creates it if it is missing.

    Args:
      path: Path of the file.

    Raises:
      FileError: If the path is a link, has a second hard link or is not a regular file.
    """
    descriptor = open_plain(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    if os.fstat(descriptor).st_nlink > 1:
        os.close(descriptor)
        raise _unlike("file with one name", path)
    return os.fdopen(descriptor, "r+b")


def subfolder(folder: Path, name: str) -> Path:
    """Returns the path of a subfolder, which is created if it is missing.

    Args:
      folder: Parent folder.
      name: Name of the subfolder.

    Raises:
      FileError: If a link or a file has that name.
    """
    path = folder / name
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise _unlike("folder", path) from None
    if path.is_symlink():
        raise _unlike("folder", path)
    return path


def require_own_files(folder: Path, apart: Collection[str] = ()) -> None:
    """Checks that a folder holds only regular files and folders, at any depth.

    Files that are written in place must also not have a second hard link.

    Args:
      folder: Folder to search. It may be missing, and it may itself be a link.
      apart: Names of subfolders whose content is not searched.

    Raises:
      FileError: If the folder holds a link, pipe, socket or device, or a file written in place has
        a second hard link.
    """
    pending = [folder] if folder.is_dir() else []
    while pending:
        place = pending.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if place != folder or entry.name not in apart:
                        pending.append(Path(entry.path))
                elif not entry.is_file(follow_symlinks=False):
                    raise _unlike("file or folder", Path(entry.path))
                elif entry.name.endswith(_IN_PLACE) and entry.stat().st_nlink > 1:
                    raise _unlike("file with one name", Path(entry.path))


_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFREG: "a file",
}


def _unlike(wanted: str, path: Path) -> FileError:
    status = os.lstat(path)
    kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
    if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
        kind = f"one with {status.st_nlink} (hard links)"
    return FileError(f"{path} must be a {wanted}, got {kind}")
