"""Facts about this machine and program on which results depend, and the compilation cache.

JAX loads native code from its compilation cache. Anyone who can write to the cache can run code as
the user, so the cache is a private folder of the user and never lies in a run folder or a corpus.
If the user has set JAX_COMPILATION_CACHE_DIR, that folder is used without these checks.
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

_THREADS = "NPROC"  # environment variable that XLA's CPU client reads instead of counting cores


def visible_cores() -> int:
    """Returns the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limit_threads(threads: int) -> None:
    """Sets the number of threads of XLA's CPU client.

    Call this function before JAX starts its backends.

    Args:
      threads: Number of threads, at least 1.
    """
    os.environ[_THREADS] = str(threads)


def compute_threads() -> int:
    """Returns the number of threads in XLA's pools, which affects how sums on a CPU round."""
    return int(os.environ.get(_THREADS) or visible_cores())


# In the repository, `configs`, `data` and `model` lie beside `nanoevolve_jax/`. In an installation,
# they lie inside it.
_PACKAGES = ("nanoevolve_jax", *(f"nanoevolve_jax.{name}" for name in ("configs", "data", "model")))


def source_files() -> dict[str, Path]:
    """Returns the paths of all Python files of the program.

    Returns:
      Path of each file by its path in an installation, such as `nanoevolve_jax/model/gpt.py`.
    """
    files = {}
    for package in _PACKAGES:
        folder = Path(str(resources.files(package)))
        for path in sorted(folder.rglob("*.py")):
            files[f"{package.replace('.', '/')}/{path.relative_to(folder).as_posix()}"] = path
    return files


_VERSIONS = ("jax", "jaxlib", "flax", "optax", "numpy")
_CONFIGS = "nanoevolve_jax/configs/"  # excluded from the fingerprint; configs compare by value


class Facts(NamedTuple):
    """Facts about a process that trains. Equal facts and jobs give bitwise equal results."""

    corpus: str  # fingerprint of the corpus
    tokenizer: str  # fingerprint of the tokenizer
    versions: dict[str, str]  # version by library
    device: dict[str, Any]  # platform, kind, number of devices, number of cores (0 except on CPUs)
    lanes: int  # number of candidates per device
    data_parallel: int  # number of devices per candidate
    code: str  # fingerprint of the program's sources

    @property
    def width(self) -> int:
        """Number of candidates that the process trains at once."""
        return self.device["devices"] // self.data_parallel * self.lanes


def gather_facts(
    fingerprints: dict[str, str], devices: int, lanes: int, data_parallel: int
) -> Facts:
    """Returns the facts of this process.

    Args:
      fingerprints: Fingerprints of the packed rows, with keys `corpus` and `tokenizer`.
      devices: Number of devices in the mesh.
      lanes: Number of candidates per device.
      data_parallel: Number of devices per candidate.
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
    """Returns a fingerprint of all source files except configs, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, path in source_files().items():
        if not name.startswith(_CONFIGS):
            digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Returns a phrase for each value in which two nested dicts differ.

    Args:
      old: Nested dict before the change, or a value inside it.
      new: Nested dict after the change, or a value inside it.
      path: Dotted path of the values inside the outermost dicts.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(set(old) | set(new))
        return [d for n in names for d in differences(old.get(n), new.get(n), f"{path}.{n}")]
    return [] if old == new else [f"{path.lstrip('.')} is {new!r} and was {old!r}"]


_PRIVATE = 0o700


def user_cache() -> Path:
    """Returns the path of the user's cache folder.

    The folder is `nanoevolve` in XDG_CACHE_HOME if that variable holds an absolute path, otherwise
    in `~/.cache`.

    Raises:
      FileError: If XDG_CACHE_HOME is not an absolute path and the user does not have a home folder,
        as in some containers.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(given) if os.path.isabs(given) else Path(os.path.expanduser("~/.cache"))
    if not home.is_absolute():
        raise FileError(
            f"XDG_CACHE_HOME must be an absolute path where the user has no home, got {given!r}"
        )
    return home / "nanoevolve"


def keep_programs(warn: Callable[[str], None]) -> None:
    """Sets the folder of JAX's compilation cache.

    Call this function before JAX starts its backends.

    Args:
      warn: Callback that takes one line if the folder is not private. Compiled programs are then
        not cached.
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
    """Creates a folder that only the user can access, unless it exists, and returns its path.

    Args:
      path: Path of the folder. Missing parents are created with default permissions.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=_PRIVATE, exist_ok=True)
    return path


def _not_private(path: Path) -> str | None:
    """Creates a folder unless it exists, and returns the reason to reject it, or None."""
    try:
        private_folder(path)
        status = os.lstat(path)
    except OSError as error:
        return f"{path} cannot be used ({error.strerror})"
    if not stat.S_ISDIR(status.st_mode):
        return f"{path} must be a folder, not a link"
    if status.st_uid != os.geteuid():
        return f"{path} must belong to user {os.geteuid()}, not {status.st_uid}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{path} must not be writable by others, got mode {stat.S_IMODE(status.st_mode):o}"
    return None
