"""Runs a Python script in a sandbox of the operating system.

Bubblewrap hides files, processes and the network from the child, whose first code is `confined.py`:
it limits resources and filters system calls. The script reads a request from standard input and
returns bytes. Nothing else that it does outlives it.
"""

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import NamedTuple

from nanoevolve_jax.execution.settings import ConfigError

REQUIRED, AVAILABLE = "required", "available"
SETTINGS = (REQUIRED, AVAILABLE)
"""Values of `config.codegen.isolation`: every wall must exist, or those of this machine suffice."""
BUBBLEWRAP, LIMITS = "bubblewrap", "limits only"
"""Means of isolation, the best first. Limits alone hide nothing."""

_CONFINED = Path(__file__).resolve().parent / "confined.py"
_PACKAGE = _CONFINED.parents[2]
_DEVICES = ("null", "zero", "random", "urandom")
_ERROR_BYTES = 16_384  # of standard error that are kept
_MEBI = 1 << 20


class IsolationError(ConfigError):
    """A required wall that this machine lacks."""


class Limits(NamedTuple):
    """Resources of a child, which all of its threads share."""

    seconds: float = 300.0  # wall clock; most sources take 30 s, matrices of 4096 take minutes
    cpu_seconds: int = 600
    memory: int = 4096 * _MEBI  # bytes of private memory
    address_space: int = 16_384 * _MEBI  # bytes; XLA reserves far more than it uses
    scratch: int = 64 * _MEBI  # bytes of its folder in memory, and of any file
    output: int = 32 * _MEBI  # bytes of its result
    open_files: int = 64
    threads: int = 512  # enforced only if the kernel counts them, which it does not for root
    cpus: int = 2


class Isolation(NamedTuple):
    """Walls of this machine's sandbox, and whether incomplete ones are accepted."""

    means: str
    walls: tuple[tuple[str, bool], ...]
    accepted: bool = False

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the walls that this machine lacks."""
        return tuple(name for name, exists in self.walls if not exists)

    @property
    def refusal(self) -> str | None:
        """Reason not to run anything, in one line, or None."""
        if self.accepted or not self.missing:
            return None
        return (
            f"config.codegen.isolation must be {AVAILABLE} to run code with {self.means!r} and "
            f"without {', '.join(self.missing)}, or install bubblewrap and allow user namespaces"
        )

    def in_words(self) -> str:
        """Returns the means and whether each wall exists, in one line."""
        walls = ", ".join(f"{name}: {'yes' if exists else 'NO'}" for name, exists in self.walls)
        return f"{self.means} ({walls})"


class Outcome(NamedTuple):
    """Result of a script and how its process ended."""

    code: int  # exit code; 128 + n after signal n
    result: bytes
    errors: str  # beginning of its standard error
    stopped: str  # the limit that ended it, 'time' or 'output', or ''


def isolation(setting: str = REQUIRED, means: str | None = None) -> Isolation:
    """Returns the isolation of this machine.

    Args:
      setting: One of `SETTINGS`.
      means: `BUBBLEWRAP` or `LIMITS`; by default the better one that works.

    Raises:
      IsolationError: If the setting is unknown or a required wall is missing.
    """
    if setting not in SETTINGS:
        raise IsolationError(f"isolation must be {' or '.join(SETTINGS)}, got {setting!r}")
    means = means or (BUBBLEWRAP if works(BUBBLEWRAP) else LIMITS)
    hidden = means == BUBBLEWRAP
    walls = (
        ("no network", hidden or _filters()),
        ("no further processes", _filters()),
        ("files out of sight", hidden),
        ("no other processes in sight", hidden),
        ("limits of time, memory and files", True),
        ("empty environment", True),
    )
    chosen = Isolation(means, walls, accepted=setting == AVAILABLE)
    if chosen.refusal:
        raise IsolationError(chosen.refusal)
    return chosen


@functools.cache
def works(means: str) -> bool:
    """Returns whether a Python program starts under this isolation; tried once per process."""
    if means == LIMITS:
        return True
    if shutil.which("bwrap") is None:
        return False
    line = [*_launcher(means, _CONFINED, _MEBI), sys.executable, "-I", "-c", ""]
    try:
        return not subprocess.run(line, capture_output=True, timeout=30.0, check=False).returncode
    except (OSError, subprocess.TimeoutExpired):
        return False


@functools.cache
def _filters() -> bool:
    """Whether this kernel filters system calls and their numbers are known here."""
    if not sys.platform.startswith("linux") or os.uname().machine not in ("x86_64", "aarch64"):
        return False
    return "\nSeccomp:" in Path("/proc/self/status").read_text()


def run(script: Path, request: bytes, limits: Limits, isolation: Isolation) -> Outcome:
    """Runs a Python script, and ends every process that it has started.

    Args:
      script: File that writes its result to the file descriptor in `sys.argv[1]`. A file outside
        of this package is visible alone, without its folder.
      request: Content of its standard input.
      limits: Resources that it may use.
      isolation: Walls around it; whether they suffice is not checked here.
    """
    line = [*_launcher(isolation.means, script, limits.scratch)]
    line += [
        sys.executable,
        "-I",
        "-B",
        str(_CONFINED),
        json.dumps(_settings(script, limits, isolation)),
    ]
    with contextlib.ExitStack() as stack:
        # Files without names, which the child can fill no further than its limit of file size.
        streams = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        streams[0].write(request)
        streams[0].seek(0)
        child = subprocess.Popen(
            line,
            **dict(zip(("stdin", "stdout", "stderr"), streams, strict=True)),
            env={"JAX_PLATFORMS": "cpu", "LC_ALL": "C.UTF-8"},
            cwd="/",
            start_new_session=True,
        )
        stopped = ""
        try:
            child.wait(limits.seconds)
        except subprocess.TimeoutExpired:
            stopped = "time"
        finally:
            # Bubblewrap's first process inside dies with the outer one, and its namespace with it.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        result, errors = _content(streams[1], limits.output), _content(streams[2], _ERROR_BYTES)
    code = child.returncode if child.returncode >= 0 else 128 - child.returncode
    if code == 128 + signal.SIGXCPU:
        stopped = stopped or "time"
    if len(result) > limits.output:
        result, stopped = b"", stopped or "output"
    return Outcome(code, result, errors[:_ERROR_BYTES].decode(errors="replace"), stopped)


def _content(file, most: int) -> bytes:
    """At most one byte more than `most` of a file."""
    file.seek(0)
    return file.read(most + 1)


def _settings(script: Path, limits: Limits, isolation: Isolation) -> dict:
    """The argument of `confined.py`."""
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
    kernel = tuple(map(int, os.uname().release.split(".")[:2]))
    if isolation.means == BUBBLEWRAP and kernel >= (5, 14):  # counts threads by namespace
        numbers["RLIMIT_NPROC"] = limits.threads
    return {
        "script": str(script),
        "paths": [str(_PACKAGE.parent), *_site_packages()],
        "limits": numbers,
        "cpus": limits.cpus,
        "filter": _filters(),
    }


def _launcher(means: str, script: Path, scratch: int) -> list[str]:
    """The beginning of a command line that runs the rest of it in a sandbox."""
    if means == LIMITS:
        return []
    line = ["bwrap", "--unshare-user", "--unshare-all", "--uid", "1000", "--gid", "1000"]
    line += ["--die-with-parent", "--new-session"]
    for name in _DEVICES:
        line += ["--dev-bind-try", f"/dev/{name}", f"/dev/{name}"]
    # First, because visible paths may lie below it.
    line += ["--size", str(scratch), "--tmpfs", "/tmp"]
    for path in _visible(script):
        line += ["--ro-bind", path, path]
    for name in ("/lib", "/lib64"):
        if Path(name).is_symlink():
            line += ["--symlink", str(Path(name).readlink()), name]
    return [*line, "--remount-ro", "/", "--chdir", "/tmp", "--"]


def _visible(script: Path) -> list[str]:
    """Paths that a child can read: Python, its packages, this package and the script."""
    prefixes = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    names = ("bin", "lib", "lib64", "pyvenv.cfg")
    paths = [f"{root}/{name}" for root in prefixes for name in names]
    paths += [*_site_packages(), sysconfig.get_path("stdlib"), str(Path(sys.executable).resolve())]
    paths += ["/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/proc/cpuinfo"]
    paths += [str(_PACKAGE), str(script)]
    paths += [name for name in ("/lib", "/lib64") if not Path(name).is_symlink()]
    existing = sorted({path for path in paths if Path(path).exists()})
    return [p for p in existing if not any(p.startswith(f"{q}/") for q in existing)]


def _site_packages() -> list[str]:
    """Folders of installed packages that this process imports from."""
    return [x for x in sys.path if Path(x).name in ("site-packages", "dist-packages")]
