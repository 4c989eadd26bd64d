"""Connection to a Ray cluster that closes in bounded time even if Ray hangs.

Always import `ray` from this module. Otherwise Ray starts a new cluster when one of its functions
is called without a connection, for example after the connection was closed. This module needs the
extra `ray`.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence

os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # read once, when `ray` is imported

import psutil  # a dependency of Ray
import ray

from nanoevolve_jax.errors import must
from nanoevolve_jax.execution import hosts
from nanoevolve_jax.execution.engine import ClusterError
from nanoevolve_jax.stopping import exit_if_stuck, handle, unchanged_handlers

LOCAL = "local"
_CONNECT_SECONDS = 10.0  # longest wait for a cluster to answer
_SHUTDOWN_SECONDS = 8.0  # longest wait for Ray's own shutdown, which takes 1 to 4 s
_STUCK_SECONDS = 10.0  # longest wait for a call of Ray to return after a signal
_TICK = 0.02
_KILL_SECONDS = 2.0  # longest wait for killed processes to end


@contextlib.contextmanager
def connected(address: str) -> Iterator[dict[str, float]]:
    """Connects to a Ray cluster, or starts a local one.

    When the block ends, all processes of a local cluster are ended and the previous handlers of
    Ctrl-C and SIGTERM are restored. Ctrl-C and SIGTERM are ignored during this shutdown, which
    takes a few seconds.

    Args:
      address: Address of the cluster, `auto` to find a running one, or `local` to start one.

    Yields:
      Amounts of the resources that the cluster has at present, by name.

    Raises:
      ClusterError: If the cluster cannot be reached or started.
      KeyboardInterrupt: If Ctrl-C or SIGTERM arrives while connecting.
    """
    before, started = set(_children()), []
    try:
        try:
            with unchanged_handlers():  # because Ray installs a handler of SIGTERM
                _connect(address)
        finally:
            started += [child for child in _children() if child not in before]
        with exit_if_stuck(_STUCK_SECONDS, lambda: _kill(_family(started))):
            yield ray.cluster_resources()
    finally:
        with unchanged_handlers():
            _end(started)


def _connect(address: str) -> None:
    try:
        _require_listener(address)
        ray.init(
            address=address,
            include_dashboard=False if address == LOCAL else None,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except SystemExit:  # raised by Ray's handler of SIGTERM
        raise KeyboardInterrupt from None
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise ClusterError(
            f"{must('config.ray.address', 'be local, auto or a running cluster', address)} "
            f"({first_line(error)})"
        ) from None


def _require_listener(address: str) -> None:
    """Raises OSError if nothing listens at an address, where Ray would retry for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()


def _end(started: list[psutil.Process]) -> None:
    """Disconnects and ends all processes of a local cluster.

    Args:
      started: Child processes that Ray started in this process.
    """
    family = _family(started)
    shutdown = threading.Thread(target=ray.shutdown, daemon=True)
    shutdown.start()
    until = time.monotonic() + _SHUTDOWN_SECONDS
    while shutdown.is_alive() and time.monotonic() < until:
        handle(signal.SIG_IGN)  # because Ray's shutdown restores the default handler of SIGTERM
        shutdown.join(_TICK)
    handle(signal.SIG_IGN)
    _kill(family)
    if shutdown.is_alive():  # Ray's exit handler would call it again and hang
        hosts.exit_without_handlers()


def first_line(error: BaseException) -> str:
    """Returns the type and first line of an error.

    Args:
      error: Error to describe. If Ray has wrapped another error, that error is described.
    """
    cause = getattr(error, "cause", None)
    shown = cause if isinstance(cause, Exception) else error
    lines = [line for line in str(shown).splitlines() if line.strip()]
    return f"{type(shown).__name__}: {lines[0] if lines else ''}"[:300]


def _children() -> list[psutil.Process]:
    return psutil.Process().children()


def _family(started: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Returns the given processes and their descendants."""
    family = list(started)
    for process in started:
        with contextlib.suppress(psutil.Error):
            family += process.children(recursive=True)
    return family


def _kill(processes: Sequence[psutil.Process]) -> None:
    """Kills processes that are still running and waits until they end."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()  # psutil checks that the process id has not been reused
    psutil.wait_procs(processes, timeout=_KILL_SECONDS)
