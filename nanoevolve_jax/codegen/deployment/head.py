"""A Ray of the user's own: a head node that outlives whoever started it, found by a small file.

It listens for jobs on 127.0.0.1 alone and asks for Ray's token, which it makes if there is none.
What it starts inherits a few harmless variables and nothing else of this process's environment.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from nanoevolve_jax.data.files import locked
from nanoevolve_jax.execution.engine import ClusterError
from nanoevolve_jax.execution.json_files import read_json, write_json
from nanoevolve_jax.execution.ray_connection import psutil
from nanoevolve_jax.execution.threads import visible_cores

FILE, LOG, _LOCK = "head.json", "head.log", "head.lock"
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_TICK = 0.2
_PASSED_ON = (
    *("PATH", "HOME", "USER", "LANG", "TMPDIR", "TZ", "XDG_CACHE_HOME", "LD_LIBRARY_PATH"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_HOME", "XLA_FLAGS", "RAY_AUTH_TOKEN_PATH"),
)
"""Variables of the environment that a head and its jobs get: places and devices, no keys."""


def find(place: Path) -> str | None:
    """The address of the head that was started in a folder; None if it does not run."""
    head = _read(place)
    return head["address"] if head and _process(head) else None


def start(place: Path, *, cpus: int = 0, gpus: int | None = None) -> str:
    """Starts a head, unless it runs already; returns its address.

    Args:
      place: folder of its file and its log.
      cpus: that its jobs may use; 0: all that this process may.
      gpus: the same; None: all that Ray finds.

    Raises:
      ClusterError: if it does not come up.
    """
    place.mkdir(parents=True, exist_ok=True)
    with locked(place / _LOCK):
        return find(place) or _start(place, cpus or visible_cores(), gpus)


def stop(place: Path) -> bool:
    """Ends the head and its jobs; False if there is none."""
    head = _read(place)
    process = _process(head) if head else None
    if process is None:
        return False
    family = [process, *process.children(recursive=True)]
    process.terminate()  # it ends its children
    _, alive = psutil.wait_procs(family, timeout=_STOP_SECONDS)
    for left in alive:
        with contextlib.suppress(psutil.Error):
            left.kill()
    (place / FILE).unlink(missing_ok=True)
    return True


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """The environment of a head.

    Args:
      given: of this process.
    """
    kept = {name: given[name] for name in _PASSED_ON if name in given}
    # A job's `python` is the one that started the head.
    folders = [str(Path(sys.executable).parent), kept.get("PATH", os.defpath)]
    return kept | {"PATH": os.pathsep.join(folders), "RAY_AUTH_MODE": "token"}


def _start(place: Path, cpus: int, gpus: int | None) -> str:
    clean = environment(os.environ)
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    subprocess.run([*ray, "get-auth-token", "--generate"], env=clean, capture_output=True)
    port, client, agent = _free_ports(3)
    flags = [
        *("--head", "--block", "--port=0", "--disable-usage-stats", "--include-dashboard=true"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={port}", f"--num-cpus={cpus}"),
        *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
        *([] if gpus is None else [f"--num-gpus={gpus}"]),
    ]
    with open(place / LOG, "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*ray, "start", *flags],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=clean,
            cwd="/",
            start_new_session=True,  # so that it outlives this process and its terminal
        )
    address, until = f"http://127.0.0.1:{port}", time.monotonic() + _START_SECONDS
    try:
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > until:
                raise ClusterError(f"a local Ray does not start; {place / LOG} says why")
            time.sleep(_TICK)
        started = psutil.Process(process.pid).create_time()
        write_json(place / FILE, {"address": address, "process": process.pid, "started": started})
    except BaseException:  # also Ctrl-C: without its file the head would never be found again
        _kill(process.pid)
        raise
    return address


def _kill(head: int) -> None:
    """Kills the process of a head, its descendants and its process group."""
    with contextlib.suppress(psutil.Error):
        family = psutil.Process(head).children(recursive=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head, signal.SIGKILL)
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(family, timeout=_STOP_SECONDS)


class _Head(TypedDict):
    address: str
    process: int
    started: float


def _read(place: Path) -> dict[str, Any] | None:
    try:
        return read_json(place / FILE, _Head)
    except (OSError, ValueError):
        return None


def _process(head: dict[str, Any]) -> psutil.Process | None:
    """The process of a head, if it lives; another one that was given its number is not it."""
    try:
        process = psutil.Process(head["process"])
        same = abs(process.create_time() - head["started"]) < 1.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, KeyError, TypeError):
        return None


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        return True
    return False


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
