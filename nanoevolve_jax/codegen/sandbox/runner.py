"""Runs a Python script in a sandbox of the operating system.

Bubblewrap hides files, processes and the network from the child process. The child first runs
`confined.py`, which limits resources and filters system calls. The script reads a request from
standard input and returns bytes. With Bubblewrap, none of its processes or files remain after it.
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
"""Values of `config.codegen.isolation`: all protections, or those that this machine has."""
BUBBLEWRAP, LIMITS = "bubblewrap", "limits only"
"""Means of isolation, the best first. Limits alone hide nothing."""

_CONFINED = Path(__file__).resolve().parent / "confined.py"
_PACKAGE = _CONFINED.parents[2]
_DEVICES = ("null", "zero", "random", "urandom")
_ERROR_BYTES = 16_384  # number of bytes of standard error that are kept
_MEBI = 1 << 20


class IsolationError(ConfigError):
    """Error raised if the sandbox of this machine lacks a required protection."""


class Limits(NamedTuple):
    """Resource limits of a child process, shared by all its threads."""

    seconds: float = 300.0  # wall-clock time; 30 s for most sources, minutes for width 4096
    cpu_seconds: int = 600
    memory: int = 4096 * _MEBI  # private memory in bytes
    address_space: int = 16_384 * _MEBI  # address space in bytes; XLA reserves more than it uses
    scratch: int = 64 * _MEBI  # size of the temporary folder, and of any file, in bytes
    output: int = 32 * _MEBI  # size of the result in bytes
    open_files: int = 64
    threads: int = 512  # enforced only with Bubblewrap on Linux 5.14 or later, and not for root
    cpus: int = 2


class Isolation(NamedTuple):
    """Isolation that the sandbox of this machine provides."""

    means: str  # BUBBLEWRAP or LIMITS
    walls: tuple[tuple[str, bool], ...]  # name of each protection and whether it exists
    accepted: bool = False  # whether incomplete isolation is accepted

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the protections that this machine lacks."""
        return tuple(name for name, exists in self.walls if not exists)

    @property
    def refusal(self) -> str | None:
        """Reason why code must not be run, as one line, or None if it may be run."""
        if self.accepted or not self.missing:
            return None
        return (
            f"config.codegen.isolation must be {AVAILABLE} on this machine, which lacks these "
            f"protections: {', '.join(self.missing)}. Install bubblewrap and allow user "
            "namespaces to get them"
        )

    def in_words(self) -> str:
        """Returns the means of isolation and the existence of each protection, as one line."""
        walls = ", ".join(f"{name}: {'yes' if exists else 'NO'}" for name, exists in self.walls)
        return f"{self.means} ({walls})"


class Outcome(NamedTuple):
    """Result of a script and the end of its process."""

    code: int  # exit code; 128 + n after signal n
    result: bytes
    errors: str  # beginning of the script's standard error
    stopped: str  # limit that ended the script, 'time' or 'output', or '' if none did


def isolation(setting: str = REQUIRED, means: str | None = None) -> Isolation:
    """Returns the isolation that the sandbox of this machine provides.

    Args:
      setting: Required isolation, one of `SETTINGS`.
      means: Means of isolation, `BUBBLEWRAP` or `LIMITS`. The default is `BUBBLEWRAP` if it works
        on this machine, and otherwise `LIMITS`.

    Raises:
      IsolationError: If the setting is unknown or a required protection is missing.
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
    """Returns whether a Python program can be started with a means of isolation.

    This is tried once per process.

    Args:
      means: Means of isolation, `BUBBLEWRAP` or `LIMITS`.
    """
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
    """Returns whether the kernel supports seccomp and the system call numbers are known."""
    if not sys.platform.startswith("linux") or os.uname().machine not in ("x86_64", "aarch64"):
        return False
    return "\nSeccomp:" in Path("/proc/self/status").read_text()


def run(script: Path, request: bytes, limits: Limits, isolation: Isolation) -> Outcome:
    """Runs a Python script in the sandbox and finally kills its process group.

    Args:
      script: Path of the script, which writes its result to the file descriptor in `sys.argv[1]`.
        If the script is outside this package, other files of its folder are hidden from it.
      request: Content of the script's standard input.
      limits: Resource limits of the script.
      isolation: Isolation of the sandbox. Missing protections are not checked here.

    Returns:
      Result of the script, and the way in which its process ended.
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
        # Temporary files, unlike pipes, are subject to the child's limit of file size.
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
            # Killing Bubblewrap also ends its process namespace with all processes in it.
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
    """Returns the first `most` bytes of a file, and one more byte if the file is larger."""
    file.seek(0)
    return file.read(most + 1)


def _settings(script: Path, limits: Limits, isolation: Isolation) -> dict:
    """Returns the settings of `confined.py`."""
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
    # Since Linux 5.14, threads are counted per user namespace.
    if isolation.means == BUBBLEWRAP and kernel >= (5, 14):
        numbers["RLIMIT_NPROC"] = limits.threads
    return {
        "script": str(script),
        "paths": [str(_PACKAGE.parent), *_site_packages()],
        "limits": numbers,
        "cpus": limits.cpus,
        "filter": _filters(),
    }


def _launcher(means: str, script: Path, scratch: int) -> list[str]:
    """Returns the start of a command line, which runs the rest of the line in a sandbox."""
    if means == LIMITS:
        return []
    line = ["bwrap", "--unshare-user", "--unshare-all", "--uid", "1000", "--gid", "1000"]
    line += ["--die-with-parent", "--new-session"]
    for name in _DEVICES:
        line += ["--dev-bind-try", f"/dev/{name}", f"/dev/{name}"]
    # /tmp is mounted before the visible paths, because they may be inside it.
    line += ["--size", str(scratch), "--tmpfs", "/tmp"]
    for path in _visible(script):
        line += ["--ro-bind", path, path]
    for name in ("/lib", "/lib64"):
        if Path(name).is_symlink():
            line += ["--symlink", str(Path(name).readlink()), name]
    return [*line, "--remount-ro", "/", "--chdir", "/tmp", "--"]


def _visible(script: Path) -> list[str]:
    """Returns the paths that a child can read: Python, its packages, this package, the script."""
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
    """Returns the folders of installed packages on the import path of this process."""
    return [x for x in sys.path if Path(x).name in ("site-packages", "dist-packages")]
