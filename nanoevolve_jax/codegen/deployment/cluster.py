"""Jobs of candidates' folders on a Ray cluster: sent, looked at, and what they gave.

The id of a job is the hash of its folder, so a candidate that is sent twice is trained once. For
addresses see `server.py`; a local Ray is started when something is sent to it, and only then.
"""

from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from nanoevolve_jax.codegen.deployment import reply
from nanoevolve_jax.codegen.deployment.folder import read_folder
from nanoevolve_jax.codegen.deployment.intact import PREFIX
from nanoevolve_jax.codegen.deployment.server import Server, connected
from nanoevolve_jax.execution.engine import ClusterError

PENDING, RUNNING, SUCCEEDED = "pending", "running", "succeeded"
FAILED, STOPPED, LOST = "failed", "stopped", "lost"
ENDED = (SUCCEEDED, FAILED, STOPPED, LOST)
_TO_TRY_AGAIN = (FAILED, STOPPED)
_AUTOMATIC = -1  # config.ray.gpus: what a candidate needs, if the cluster has any
_ENTRYPOINT = "python -B -m nanoevolve_jax.codegen.deployment.remote"


class State(NamedTuple):
    """A job as its cluster sees it."""

    job: str
    status: str  # one of the words above; LOST: the cluster knows no such job
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
    with connected(address, start=True) as server:
        known = _state(server, job).status
        if again and known in _TO_TRY_AGAIN:
            server.client.delete_job(job)
        elif known != LOST:
            return job
        cpus, gpus = _needs(config, server.nodes())
        try:
            server.client.submit_job(
                entrypoint=f"{_ENTRYPOINT} {job}",
                submission_id=job,
                runtime_env={"working_dir": str(folder)},  # and no variables
                metadata={"candidate": candidate},
                entrypoint_num_cpus=cpus,
                entrypoint_num_gpus=gpus or None,
            )
        except RuntimeError:
            if _state(server, job).status == LOST:
                raise  # else another process was faster
    return job


def poll(job: str, address: str) -> State:
    """What has become of a job.

    Raises:
      ClusterError: if the cluster cannot be reached.
    """
    with connected(address) as server:
        return _state(server, job) if server else State(job, LOST, "no local Ray runs")


def log(job: str, address: str) -> str:
    """All that a job has printed so far; empty if it is unknown.

    Raises:
      ClusterError: if the cluster cannot be reached.
    """
    with connected(address) as server:
        known = server and _state(server, job).status != LOST
        return server.client.get_job_logs(job) if known else ""


def result(job: str, address: str) -> dict[str, Any] | None:
    """What a job gave, see `paired.train`; None if it has given nothing, or not yet.

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
    with connected(address) as server:
        jobs = server.client.list_jobs() if server else []
        found = [
            _as_state(job.submission_id, job)
            for job in jobs
            if (job.submission_id or "").startswith(PREFIX)
        ]
    return sorted(found, key=lambda state: state.started or 0.0)


def stop(job: str, address: str) -> None:
    """Ends a job.

    Raises:
      ClusterError: if the cluster cannot be reached.
    """
    with connected(address) as server:
        if server and _state(server, job).status not in ENDED:
            server.client.stop_job(job)


def _state(server: Server, job: str) -> State:
    try:
        return _as_state(job, server.client.get_job_info(job))
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
        return State(job, LOST, "the cluster knows no such job")


def _as_state(job: str, info: Any) -> State:
    lines = [line for line in (info.message or "").splitlines() if line.strip()]
    return State(
        job,
        status=info.status.value.lower(),
        message=lines[0] if lines else "",
        candidate=(info.metadata or {}).get("candidate", ""),
        started=info.start_time / 1000 if info.start_time else None,
    )


def _needs(config: ConfigDict, nodes: list[dict[str, float]]) -> tuple[int, int]:
    """CPUs and GPUs of a job; one that no node has room for is refused, or it would wait for ever.

    Raises:
      ClusterError: if there is no such node.
    """
    gpus = config.ray.gpus
    if gpus == _AUTOMATIC:
        gpus = config.data_parallel if any(node.get("GPU") for node in nodes) else 0
    cpus = 1 if gpus else config.threads
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        most = max((int(node.get("CPU", 0)) for node in nodes), default=0)
        raise ClusterError(
            f"config.threads is {config.threads} and config.ray.gpus {config.ray.gpus}; allowed: "
            f"what one node has, and none has {cpus} CPUs and {gpus} GPUs (the largest has {most} "
            "CPUs)"
        )
    return cpus, gpus
