"""The walls around code that nobody has read: what they are here, and a script run behind them.

Bubblewrap where it works, else the kernel's namespaces by hand (`namespaces.py`), else only limits
of the process. Whatever the means, the first code inside is `confined.py`, and results come back
through a pipe of bounded size: the child has no place on disk to write to.
"""

import contextlib
import functools
import json
import os
import shutil
import signal
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from nanoevolve_jax.codegen.sandbox import bounded, seccomp
from nanoevolve_jax.codegen.sandbox.walls import (
    BUBBLEWRAP,
    LIMITS,
    NAMESPACES,
    launcher,
    site_packages,
)
from nanoevolve_jax.execution.settings import ConfigError

REQUIRED, AVAILABLE = "required", "available"
SETTINGS = (REQUIRED, AVAILABLE)
"""Whether all walls must be there, or those that are there shall do."""

_HERE = Path(__file__).resolve().parent
_PACKAGE = _HERE.parents[1]
_FRAME = 1 << 20  # bytes that the names of results may take
_MEBI = 1 << 20


class IsolationError(ConfigError):
    """Walls that are required and missing."""


class Limits(NamedTuple):
    """What a child may use; of the whole process and of all its threads together."""

    seconds: float = 300.0  # wall clock; half a minute is usual, three for matrices of 4096
    cpu_seconds: int = 600
    memory: int = 4096 * _MEBI  # bytes of private memory
    address_space: int = 16_384 * _MEBI  # bytes; XLA reserves much that it never touches
    scratch: int = 64 * _MEBI  # bytes in its private folder, in memory
    output: int = 32 * _MEBI  # bytes of results
    open_files: int = 64
    threads: int = 512  # where the kernel counts them: not for root
    cpus: int = 2


class Isolation(NamedTuple):
    """Which walls there are; `accepted`: whether what is missing may be missing."""

    means: str
    walls: tuple[tuple[str, bool], ...]
    accepted: bool = False

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the walls that are not there."""
        return tuple(name for name, there in self.walls if not there)

    @property
    def refusal(self) -> str | None:
        """Why nothing may run here, in one line; None where it may."""
        if self.accepted or not self.missing:
            return None
        return (
            f"isolation is {self.means!r}, without: {', '.join(self.missing)}; allowed: all walls "
            f"(install bubblewrap, or allow user namespaces), or isolation={AVAILABLE}, to do "
            "without"
        )

    def in_words(self) -> str:
        """One line: the means, and every wall with yes or no."""
        walls = ", ".join(f"{name}: {'yes' if there else 'NO'}" for name, there in self.walls)
        return f"{self.means} ({walls})"


class Outcome(NamedTuple):
    """What came of a script."""

    code: int  # of exit; 128 + n after signal n
    files: dict[str, bytes | None]  # what it left in its folder; None: no plain file
    errors: str  # the beginning of what it printed
    stopped: str  # 'time', 'output', or '' where it ended by itself


def isolation(setting: str = REQUIRED, means: str | None = None) -> Isolation:
    """The walls of this machine.

    Args:
      setting: one of `SETTINGS`.
      means: which ones to use; by default the best that work here.

    Raises:
      IsolationError: if a setting, or a wall that it requires, is missing.
    """
    if setting not in SETTINGS:
        raise IsolationError(f"isolation is {setting!r}; allowed: {', '.join(SETTINGS)}")
    found = _walls(means or _best())._replace(accepted=setting == AVAILABLE)
    if found.refusal:
        raise IsolationError(found.refusal)
    return found


def works(means: str) -> bool:
    """Whether a script runs behind these walls on this machine; tried once."""
    return means == LIMITS or _tried(means)


@functools.cache
def _tried(means: str) -> bool:
    if means == BUBBLEWRAP and shutil.which("bwrap") is None:
        return False
    if not sys.platform.startswith("linux"):
        return False
    script = _HERE / "greeting.py"
    try:
        found = run(script, b"", Limits(seconds=10.0), Isolation(means, ()))
    except OSError:
        return False
    return found.files == {"greeting": b"hello"}


def _best() -> str:
    return next(means for means in (BUBBLEWRAP, NAMESPACES, LIMITS) if works(means))


@functools.cache
def _walls(means: str) -> Isolation:
    namespaces = means != LIMITS
    return Isolation(
        means,
        (
            ("no network", namespaces or _filters()),
            ("no further processes", _filters()),
            ("files out of sight", namespaces),
            ("no other processes in sight", namespaces),
            ("limits of time, memory and files", True),
            ("empty environment", True),
        ),
    )


@functools.cache
def _filters() -> bool:
    if not (sys.platform.startswith("linux") and seccomp.supported()):
        return False
    status = Path("/proc/self/status").read_text()
    return "\nSeccomp:" in status


def run(script: Path, request: bytes, limits: Limits, isolation: Isolation) -> Outcome:
    """Runs a Python script behind the walls, with the path of a folder for results as argument.

    Nothing is left of it: no process, no file.

    Args:
      script: a file; it alone is visible of its folder, unless that is of this package.
      request: what it reads on its standard input.
      limits: of its resources.
      isolation: which walls; they are not asked for a refusal here.
    """
    with _results_folder(isolation.means) as folder:
        inside = [sys.executable, "-I", "-B", str(_HERE / "confined.py")]
        inside.append(json.dumps(_settings(script, folder, limits, isolation.means)))
        ended = bounded.run(
            [*launcher(isolation.means, script, limits.scratch), *inside],
            request,
            seconds=limits.seconds,
            output_bytes=limits.output + _FRAME,
            environment={"JAX_PLATFORMS": "cpu", "LC_ALL": "C.UTF-8"},
            tell_pid=isolation.means != LIMITS,
        )
    stopped = ended.stopped
    # The kernel limits by whole ticks, which on a busy machine are far more than what was used.
    if ended.code == 128 + signal.SIGKILL and ended.cpu_seconds >= 0.5 * limits.cpu_seconds:
        stopped = stopped or "time"
    return Outcome(ended.code, _files(ended.output), ended.errors, stopped)


@contextlib.contextmanager
def _results_folder(means: str) -> Iterator[str]:
    """Where the child writes: a folder in its own memory, or without namespaces one on disk."""
    if means != LIMITS:
        yield "/tmp/out"
        return
    with tempfile.TemporaryDirectory(prefix="nanoevolve-jail-") as folder:
        yield f"{folder}/out"


def _settings(script: Path, folder: str, limits: Limits, means: str) -> dict:
    """What `confined.py` is told."""
    numbers = {
        "RLIMIT_CPU": limits.cpu_seconds,
        "RLIMIT_DATA": limits.memory,
        "RLIMIT_AS": limits.address_space,
        "RLIMIT_FSIZE": limits.scratch,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
    }
    if means != LIMITS and _counts_by_namespace():
        numbers["RLIMIT_NPROC"] = limits.threads
    return {
        "script": str(script),
        "folder": folder,
        "paths": [str(_PACKAGE.parent), *site_packages()],
        "limits": numbers,
        "cpus": limits.cpus,
        "most": limits.output,
        "filter": _filters(),
    }


def _counts_by_namespace() -> bool:
    """Whether the kernel counts the threads of a namespace apart from the rest of the user's."""
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int(minor)) >= (5, 14)


def _files(frame: bytes) -> dict[str, bytes | None]:
    """The files of a frame as `confined.py` sends it; nothing of what is not one."""
    try:
        (length,) = struct.unpack_from("<Q", frame)
        if length > _FRAME:
            return {}
        start, files = 8 + length, {}
        for name, size in json.loads(frame[8:start]):
            if not isinstance(name, str) or type(size) is not int or size < -1:
                return {}
            files[name] = None if size < 0 else frame[start : start + size]
            if size > 0 and len(files[name]) != size:
                return {}
            start += max(0, size)
    except (struct.error, ValueError, TypeError, RecursionError):
        return {}
    return files
