"""The user's own cache folder, in which JAX keeps compiled programs.

JAX loads native code from its compilation cache. Whoever can write there can run code as the user,
so the cache lies in a private folder of the user, and never under a run folder, a card's place or a
corpus. A JAX_COMPILATION_CACHE_DIR that the user has set is used as it is.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import jax

from nanoevolve_jax.execution.plain_files import FileError

_PRIVATE = 0o700


def user_cache() -> Path:
    """Returns `nanoevolve` in XDG_CACHE_HOME, if that is an absolute path, otherwise in ~/.cache.

    Raises:
      FileError: if there is neither, as for a user of a container that has no name.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(given) if os.path.isabs(given) else Path(os.path.expanduser("~/.cache"))
    if not home.is_absolute():
        raise FileError(
            f"XDG_CACHE_HOME must be an absolute path where the user has no home, got {given!r}"
        )
    return home / "nanoevolve"


def keep_programs(warn: Callable[[str], None]) -> None:
    """Sets where JAX keeps compiled programs, before its backends start.

    Args:
      warn: Called with one line if the folder is not private. Programs are then compiled anew.
    """
    if jax.config.jax_compilation_cache_dir is None:
        try:
            place = user_cache() / "xla"
            reason = next(filter(None, map(_not_private, (place.parent, place))), None)
        except FileError as error:
            reason = str(error)
        if reason:
            warn(f"compiled programs are not kept: {reason}")
        else:
            jax.config.update("jax_compilation_cache_dir", str(place))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def private_folder(path: Path) -> Path:
    """Makes a folder that only the user may enter, unless it exists; returns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=_PRIVATE, exist_ok=True)
    return path


def _not_private(path: Path) -> str | None:
    """Why a folder, made if it does not exist, cannot hold programs; None if it can."""
    try:
        private_folder(path)
        found = os.lstat(path)
    except OSError as error:
        return f"{path} cannot be used ({error.strerror})"
    if not stat.S_ISDIR(found.st_mode):
        return f"{path} must be a folder, not a link"
    if found.st_uid != os.geteuid():
        return f"{path} must belong to user {os.geteuid()}, not {found.st_uid}"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{path} must not be writable by others, got mode {stat.S_IMODE(found.st_mode):o}"
    return None
