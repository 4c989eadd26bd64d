"""Jobs of candidates' folders on a Ray cluster: sent, looked at, and what they gave.

An address is `http://HOST:PORT` of a cluster's jobs server, `local` for a Ray of one's own, or
`local:DIR` for one whose file lies elsewhere than in `cache/cluster`. A local Ray is started when
something is sent to it, and only then. The id of a job is the hash of its folder, so that a
candidate which is sent twice is trained once. Needs the extra `ray`.
"""

import contextlib
import logging
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from nanoevolve_jax.codegen import reply
from nanoevolve_jax.codegen.folder import read_folder
from nanoevolve_jax.execution.engine import ClusterError
from nanoevolve_jax.execution.settings import ConfigError

LOCAL = "local"
AUTOMATIC = -1  # config.ray.gpus: what a candidate needs, if the cluster has any
PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED, LOST = (
    *("pending", "running", "succeeded", "failed", "stopped", "lost"),
)
ENDED = (SUCCEEDED, FAILED, STOPPED, LOST)
_PREFIX = "nano-"
_ENTRYPOINT = "python -B -m nanoevolve_jax.codegen.remote"
_PLACE = Path("cache") / "cluster"


class State(NamedTuple):
    """A job as its cluster sees it."""

    job: str
    status: str  # PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED; LOST: the cluster knows no such job
    message: str = ""  # one line
    candidate: str = ""  # what whoever sent it calls it
    started: float | None = None  # seconds since 1970


def submit(folder: Path, address: str, *, candidate: str = "", again: bool = False) -> str:
    """Sends a folder, unless its job is there already; returns the job's id.

    Args:
      folder: see `folder.make_folder`.
      address: of the cluster.
      candidate: a name for lists of jobs.
      again: whether a job that failed or was stopped is tried once more.

    Raises:
      FolderError: if the folder is damaged.
      ClusterError: if the cluster cannot be reached, or has no node for such a job.
    """
    job = folder.name
    config = read_folder(folder, job).config
    client = _client(address, start=True)
    with _speaking(address):
        known = _state(client, job)
        if known.status not in (LOST, FAILED, STOPPED):
            return job
        if known.status != LOST and not again:
            return job
        if known.status != LOST:
            client.delete_job(job)
        gpus = _gpus(client, config)
        try:
            client.submit_job(
                entrypoint=f"{_ENTRYPOINT} {job}",
                submission_id=job,
                runtime_env={"working_dir": str(folder)},  # and no variables
                metadata={"candidate": candidate},
                entrypoint_num_cpus=1 if gpus else config.threads,
                entrypoint_num_gpus=gpus or None,
            )
        except RuntimeError:
            if _state(client, job).status == LOST:
                raise  # else another process was faster
    return job


def poll(job: str, address: str) -> State:
    """What has become of a job.

    Raises:
      ClusterError: if the cluster cannot be reached.
    """
    client = _client(address)
    if client is None:
        return State(job, LOST, "no local Ray runs")
    with _speaking(address):
        return _state(client, job)


def log(job: str, address: str) -> str:
    """All that a job has printed so far; empty if it is unknown.

    Raises:
      ClusterError: if the cluster cannot be reached.
    """
    client = _client(address)
    if client is None:
        return ""
    with _speaking(address):
        return "" if _state(client, job).status == LOST else client.get_job_logs(job)


def result(job: str, address: str) -> dict[str, Any] | None:
    """What a job gave, see `remote.train`; None if it has not, or not yet.

    Raises:
      ClusterError: if the cluster cannot be reached.
      EvidenceError: if the result was damaged on its way, or is another job's.
    """
    if poll(job, address).status != SUCCEEDED:
        return None
    return reply.from_log(log(job, address), job)


def listed(address: str) -> list[State]:
    """The jobs of candidates on a cluster, the oldest first; none if no local Ray runs.

    Raises:
      ClusterError: if the cluster cannot be reached.
    """
    client = _client(address)
    if client is None:
        return []
    with _speaking(address):
        found = [
            _as_state(details.submission_id, details)
            for details in client.list_jobs()
            if (details.submission_id or "").startswith(_PREFIX)
        ]
    return sorted(found, key=lambda state: state.started or 0.0)


def stop(job: str, address: str) -> None:
    """Ends a job.

    Raises:
      ClusterError: if the cluster cannot be reached.
    """
    client = _client(address)
    if client is not None:
        with _speaking(address):
            client.stop_job(job)


def end_local(address: str) -> bool:
    """Ends a local Ray and its jobs; False if none runs.

    Raises:
      ClusterError: if the address is not a local one.
    """
    place = _place(address)
    if place is None:
        raise ClusterError(f"address is {address!r}; allowed: local or local:DIR, which run here")
    return _head().stop(place)


def absolute(address: str) -> str:
    """The address as it can be used from any folder of this machine."""
    place = _place(address)
    return address if place is None else f"{LOCAL}:{place.expanduser().absolute()}"


def _place(address: str) -> Path | None:
    """The folder of a local Ray's file; None for a cluster elsewhere."""
    kind, _, folder = address.partition(":")
    return None if kind != LOCAL else Path(folder) if folder else _PLACE


def _client(address: str, *, start: bool = False) -> Any:
    """A client of the jobs server; None if the address is local and no Ray runs there."""
    try:
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise _without_ray(error) from None
    place = _place(address)
    url = address
    if place is not None:
        url = _head().start(place) if start else _head().find(place)
        if url is None:
            return None
    if not re.fullmatch(r"https?://\S+", url):
        raise ClusterError(
            f"address is {address!r}; allowed: local, local:DIR, or http://HOST:PORT of a "
            "cluster's jobs server"
        )
    for name in ("ray", JobSubmissionClient.__module__):
        logging.getLogger(name).setLevel(logging.ERROR)
    with _speaking(address):
        return JobSubmissionClient(url, headers=_headers())


def _head() -> Any:
    """The module `head`, which needs Ray."""
    try:
        import ray  # noqa: F401  brings psutil

        from nanoevolve_jax.codegen import head
    except ImportError as error:
        raise _without_ray(error) from None
    return head


def _without_ray(error: ImportError) -> ConfigError:
    return ConfigError(
        f"deployment needs Ray, which cannot be imported ({error}); allowed: after "
        "`pip install 'nanoevolve-jax[ray]'`"
    )


def _headers() -> dict[str, str]:
    """Ray's own token, if there is one, in the places where Ray looks for it."""
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    with contextlib.suppress(OSError):
        token = token or file.read_text(encoding="utf-8").strip()
    return {"Authorization": f"Bearer {token}"} if token else {}


@contextlib.contextmanager
def _speaking(address: str):
    """Turns what the client raises into one line."""
    try:
        yield
    except ClusterError:
        raise
    except Exception as error:  # of Ray, of HTTP, of the system: all say that it did not work
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise ClusterError(
            f"address is {address!r}, where no job can be handled ({type(error).__name__}: "
            f"{(lines or [''])[0][:200]}); allowed: local, or http://HOST:PORT of a running cluster"
        ) from None


def _state(client: Any, job: str) -> State:
    try:
        return _as_state(job, client.get_job_info(job))
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
        return State(job, LOST, "the cluster knows no such job")


def _as_state(job: str, info: Any) -> State:
    message = (info.message or "").strip().splitlines()
    return State(
        job,
        info.status.value.lower(),
        message[0] if message else "",
        (info.metadata or {}).get("candidate", ""),
        info.start_time / 1000 if info.start_time else None,
    )


def _gpus(client: Any, config: Any) -> int:
    """GPUs for a job; refuses one that no node has room for, for it would wait for ever."""
    nodes = _nodes(client)
    wanted = config.ray.gpus
    if wanted == AUTOMATIC:
        wanted = config.data_parallel if any(node.get("GPU") for node in nodes) else 0
    cpus = 1 if wanted else config.threads
    fits = any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= wanted for node in nodes)
    if nodes and not fits:
        most = max(int(node.get("CPU", 0)) for node in nodes)
        raise ClusterError(
            f"config.threads is {config.threads} and config.ray.gpus {config.ray.gpus}, and no node "
            f"of the cluster has {cpus} CPUs and {wanted} GPUs; allowed: at most {most} threads"
        )
    return wanted


def _nodes(client: Any) -> list[dict[str, float]]:
    """What each node has in all."""
    from ray.util.state import StateApiClient
    from ray.util.state.common import ListApiOptions, StateResource

    api = StateApiClient(client.get_address(), headers=_headers() or None)
    found = api.list(StateResource.NODES, ListApiOptions(detail=True), True)
    return [node.resources_total or {} for node in found if node.state == "ALIVE"]
