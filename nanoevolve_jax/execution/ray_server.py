"""Connection to the jobs server of a Ray cluster, and management of a local Ray cluster.

An address is `http://HOST:PORT` of a cluster's jobs server, `local` for a cluster on this machine,
or `local:DIR` to keep the files of the local cluster in DIR instead of `cache/cluster`. A local
cluster outlives the process that starts it. It accepts jobs only on 127.0.0.1 and requires Ray's
authentication token. Its processes inherit only a few harmless environment variables. This module
needs the extra `ray`.
"""

import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from nanoevolve_jax.data.files import expanded, locked
from nanoevolve_jax.errors import must
from nanoevolve_jax.execution.engine import ClusterError
from nanoevolve_jax.execution.json_files import read_json, write_json
from nanoevolve_jax.execution.machine import visible_cores
from nanoevolve_jax.execution.settings import ConfigError

LOCAL, FILE, LOG, _LOCK = "local", "head.json", "head.log", "head.lock"
_PLACE = Path("cache") / "cluster"
_FORMS = "be local, local:DIR or http://HOST:PORT of a running cluster's jobs server"
_START_SECONDS, _STOP_SECONDS, _FIRST_NODE_SECONDS, _TICK = 60.0, 20.0, 30.0, 0.2
_ANSWER_SECONDS = 60.0  # longest wait for the next byte of a response
_INHERITED = (
    *("PATH", "HOME", "USER", "LANG", "TMPDIR", "TZ", "XDG_CACHE_HOME", "LD_LIBRARY_PATH"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_HOME", "XLA_FLAGS", "RAY_AUTH_TOKEN_PATH"),
)


class Server(NamedTuple):
    """Connected jobs server of a Ray cluster."""

    url: str  # HTTP address of the server
    client: Any  # instance of ray.job_submission.JobSubmissionClient
    headers: dict[str, str]  # HTTP headers of each request

    def nodes(self) -> list[dict[str, float]]:
        """Returns the total resources of every live node.

        Waits up to 30 seconds for the first node to start.
        """
        from ray.util.state import StateApiClient
        from ray.util.state.common import ListApiOptions, StateResource

        api = StateApiClient(self.url, headers=self.headers or None)
        until = time.monotonic() + _FIRST_NODE_SECONDS
        while True:
            nodes = api.list(StateResource.NODES, ListApiOptions(detail=True), True)
            alive = [node.resources_total or {} for node in nodes if node.state == "ALIVE"]
            if alive or time.monotonic() > until:
                return alive
            time.sleep(_TICK)


@contextlib.contextmanager
def connected(address: str, *, start: bool = False) -> Iterator[Server | None]:
    """Connects to the jobs server at an address.

    Args:
      address: Address in one of the forms that the module describes.
      start: Whether to start a local cluster that is not running.

    Yields:
      Connected server, or None if the address is that of a local cluster that is not running.

    Raises:
      ConfigError: If Ray is not installed.
      ClusterError: If the server cannot be reached, or a request in the block fails.
    """
    _psutil()
    place, url = _local_place(address), address
    if place is not None:
        url = _started(place) if start else find(place)
    elif not re.fullmatch(r"https?://[^\s/]+/?", address):
        raise ClusterError(must("address", _FORMS, address))
    logging.getLogger("ray").setLevel(logging.ERROR)  # hides a message per uploaded package
    try:
        headers = _headers(local=place is not None)
        yield url and Server(url, _client(url, headers), headers)
    except ClusterError:
        raise
    except Exception as error:  # Ray, HTTP and the system do not share an exception class
        # The server sends tracebacks. Their last line holds the reason.
        lines = [line for line in str(error).splitlines() if line.strip(" .")] or ["no reason"]
        reason = f"{type(error).__name__}: {lines[-1][:300]}"
        raise ClusterError(f"{must('address', _FORMS, address)} ({reason})") from None


def _client(url: str, headers: dict[str, str]) -> Any:
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, *arguments: Any, **options: Any) -> Any:
            return super()._do_request(*arguments, **{"timeout": _ANSWER_SECONDS} | options)

    return Client(url, headers=headers)


def _headers(*, local: bool) -> dict[str, str]:
    """Returns headers with Ray's token, if any. For a local cluster it is read only from a file."""
    token = "" if local else os.environ.get("RAY_AUTH_TOKEN", "")
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"
    with contextlib.suppress(OSError):
        token = token or Path(os.path.expanduser(path)).read_text(encoding="utf-8").strip()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _local_place(address: str) -> Path | None:
    kind, _, folder = address.partition(":")
    return None if kind != LOCAL else Path(folder) if folder else _PLACE


def absolute(address: str, cache: Path) -> str:
    """Returns an address that does not depend on the working directory.

    Args:
      address: Address in one of the forms that the module describes.
      cache: Cache folder, which holds the files of the cluster `local`.
    """
    place = cache / _PLACE.name if address == LOCAL else _local_place(address)
    return address if place is None else f"{LOCAL}:{expanded(place).absolute()}"


# A local Ray ----------------------------------------------------------------------------------


class _Head(TypedDict):
    address: str
    process: int
    started: float


def find(place: Path) -> str | None:
    """Returns the URL of a running local cluster, or None if it is not running.

    Args:
      place: Folder that holds the files of the cluster.
    """
    head, process = _running(place)
    return head["address"] if process else None


def stop(address: str) -> bool:
    """Ends a local cluster and its jobs.

    Args:
      address: Address `local` or `local:DIR`.

    Returns:
      True if the cluster was running.

    Raises:
      ClusterError: If the address is not a local one.
      ConfigError: If Ray is not installed.
    """
    place = _local_place(address)
    if place is None:
        raise ClusterError(must("address", "be local or local:DIR for --stop", address))
    _, process = _running(place)
    if process:
        _end(process)
        (place / FILE).unlink(missing_ok=True)
    return process is not None


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment variables of a local cluster.

    Args:
      given: Environment variables of this process.
    """
    kept = {name: given[name] for name in _INHERITED if name in given}
    # A job must run the same `python` as this process.
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
    return kept | {"PATH": path, "RAY_AUTH_MODE": "token"}


def _started(place: Path) -> str:
    """Returns the URL of a local cluster, which is started if it is not running."""
    place.mkdir(parents=True, exist_ok=True)
    with locked(place / _LOCK):
        return find(place) or _start(place)


def _start(place: Path) -> str:
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    options = {"env": environment(os.environ), "cwd": "/", "stdin": subprocess.DEVNULL}
    subprocess.run([*ray, "get-auth-token", "--generate"], **options, capture_output=True)
    port, client, agent = _free_ports(3)
    flags = [
        *("--head", "--block", "--port=0", "--disable-usage-stats", "--include-dashboard=true"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={port}"),
        *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
        f"--num-cpus={visible_cores()}",
    ]
    with open(place / LOG, "w", encoding="utf-8") as log:
        options |= {"stdout": log, "stderr": log, "start_new_session": True}
        popen = subprocess.Popen([*ray, "start", *flags], **options)
    process, until = _psutil().Process(popen.pid), time.monotonic() + _START_SECONDS
    head = {"address": f"http://127.0.0.1:{port}", "process": popen.pid}
    try:
        while not _listens(port):
            if popen.poll() is not None or time.monotonic() > until:
                raise ClusterError(f"a local Ray does not start; see {place / LOG}")
            time.sleep(_TICK)
        write_json(place / FILE, head | {"started": process.create_time()})
    except BaseException:  # includes Ctrl-C, because a cluster without its file cannot be found
        _end(process)
        raise
    return head["address"]


def _end(head: Any) -> None:
    """Ends the process of a head node and its descendants."""
    psutil = _psutil()
    with contextlib.suppress(psutil.Error, ProcessLookupError):
        family = [head, *head.children(recursive=True)]
        head.terminate()  # which makes the head end its children
        for process in psutil.wait_procs(family, timeout=_STOP_SECONDS)[1]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        os.killpg(head.pid, signal.SIGKILL)  # ends children that started in the meantime


def _running(place: Path) -> tuple[Any, Any]:
    """Returns the head of a local cluster and its process, or (None, None) if it is not running."""
    psutil = _psutil()
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        head = read_json(place / FILE, _Head)
        process = psutil.Process(head["process"])
        # Another process may have the same process id by now.
        same = abs(process.create_time() - head["started"]) < 1.0
        if same and process.status() != psutil.STATUS_ZOMBIE:
            return head, process
    return None, None


def _psutil() -> Any:
    """Returns the module `psutil`, a dependency of Ray. Raises ConfigError if Ray is missing."""
    try:
        import ray.job_submission  # noqa: F401

        from nanoevolve_jax.execution.ray_connection import psutil
    except ImportError as error:
        raise ConfigError(
            f"jobs on a cluster need Ray, which cannot be imported ({error}); run "
            "`pip install 'nanoevolve-jax[ray]'`"
        ) from None
    return psutil


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [server.getsockname()[1] for server in servers]
