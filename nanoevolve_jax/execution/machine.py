"""Facts of this machine and program that results depend on, and the user's cache of programs.

JAX loads native code from its compilation cache. Whoever can write there can run code as the user,
so the cache lies in a private folder of the user, and never under a run folder, a card's place or a
corpus. A JAX_COMPILATION_CACHE_DIR that the user has set is used as it is.
"""

import hashlib
import os
import stat
from collections.abc import Callable
from importlib import metadata, resources
from pathlib import Path
from typing import Any, NamedTuple

import jax

from nanoevolve_jax.execution.plain_files import FileError

_THREADS = "NPROC"  # read by XLA's CPU client when it starts, in place of the count of cores


def visible_cores() -> int:
    """Processors this process may use: what a CPU run is divided by."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limit_threads(threads: int) -> None:
    """Lets XLA compute with so many threads; must run before JAX starts its backends."""
    os.environ[_THREADS] = str(threads)


def compute_threads() -> int:
    """Threads that XLA's pools have in this process: they decide how a CPU rounds."""
    return int(os.environ.get(_THREADS) or visible_cores())


# In the repository these three lie beside `nanoevolve_jax/`; in an installation, inside it.
_PACKAGES = ("nanoevolve_jax", *(f"nanoevolve_jax.{name}" for name in ("configs", "data", "model")))


def source_files() -> dict[str, Path]:
    """Returns every Python file of the program.

    Returns:
      Paths of the files, keyed by their place in an installation, such as
      `nanoevolve_jax/model/gpt.py`.
    """
    files = {}
    for package in _PACKAGES:
        folder = Path(str(resources.files(package)))
        for path in sorted(folder.rglob("*.py")):
            files[f"{package.replace('.', '/')}/{path.relative_to(folder).as_posix()}"] = path
    return files


_VERSIONS = ("jax", "jaxlib", "flax", "optax", "numpy")
_CONFIGS = "nanoevolve_jax/configs/"  # the values of a run are compared by themselves


class Facts(NamedTuple):
    """Of a process that trains candidates; equal facts and jobs give equal bits."""

    corpus: str  # fingerprint
    tokenizer: str  # fingerprint
    versions: dict[str, str]
    device: dict[
        str, Any
    ]  # platform, kind, devices of the mesh, cores that compute, 0 on an accelerator
    lanes: int  # candidates a device trains at once
    data_parallel: int  # devices that share a candidate
    code: str  # fingerprint of this program's own sources

    @property
    def width(self) -> int:
        """Candidates that the process trains at once."""
        return self.device["devices"] // self.data_parallel * self.lanes


def gather_facts(
    fingerprints: dict[str, str], devices: int, lanes: int, data_parallel: int
) -> Facts:
    """The facts of this process.

    Args:
      fingerprints: of its rows, `corpus` and `tokenizer` among them.
      devices: of its mesh.
      lanes: candidates a device trains at once.
      data_parallel: devices that share a candidate.
    """
    device = jax.devices()[0]
    return Facts(
        corpus=fingerprints["corpus"],
        tokenizer=fingerprints["tokenizer"],
        versions={name: metadata.version(name) for name in _VERSIONS},
        device={
            "platform": device.platform,
            "kind": device.device_kind,
            "devices": devices,
            "cores": compute_threads() if device.platform == "cpu" else 0,
        },
        lanes=lanes,
        data_parallel=data_parallel,
        code=_code(),
    )


def _code() -> str:
    """Returns sixteen hexadecimal digits of every source file that training depends on."""
    digest = hashlib.sha256()
    for name, path in source_files().items():
        if not name.startswith(_CONFIGS):
            digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two nested dicts differ, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(set(old) | set(new))
        return [d for n in names for d in differences(old.get(n), new.get(n), f"{path}.{n}")]
    return [] if old == new else [f"{path.lstrip('.')} is {new!r} and was {old!r}"]


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
