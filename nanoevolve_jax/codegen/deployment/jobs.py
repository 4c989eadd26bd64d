"""Sends, polls and fetches jobs on a Ray cluster, and trains batches of runs as jobs.

The id of a job is the hash of its folder, so a candidate that is sent twice is trained once. A
local Ray is started when the first job is sent to it. Each function raises a ClusterError if the
cluster cannot be reached.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from nanoevolve_jax.codegen.deployment import registry
from nanoevolve_jax.codegen.deployment.folder import Submission, make_folder, portable, read_folder
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.execution.engine import ClusterError, Progress
from nanoevolve_jax.execution.intact import PREFIX
from nanoevolve_jax.execution.job import Job
from nanoevolve_jax.execution.ray_server import Server, connected
from nanoevolve_jax.execution.results import LOST as LOST_RUN
from nanoevolve_jax.execution.results import Lost, RunResult, result_from_json
from nanoevolve_jax.execution.train import TELEMETRY

SUCCEEDED, FAILED, STOPPED, LOST = "succeeded", "failed", "stopped", "lost"
ENDED = (SUCCEEDED, FAILED, STOPPED, LOST)
# Value of config.ray.gpus that requests as many GPUs as a candidate uses, if the cluster has GPUs.
_AUTOMATIC = -1
_ENTRYPOINT = "python -B -m nanoevolve_jax.codegen.deployment.remote"
_POLL_SECONDS = 1.0


class State(NamedTuple):
    """State of a job on its cluster."""

    job: str
    status: str  # "pending", "running" or one of ENDED; LOST if the job is not on the cluster
    message: str = ""  # first line of Ray's message, or a reason
    candidate: str = ""  # name of the candidate
    started: float = 0.0  # seconds since 1970


def submit(folder: Path, address: str, candidate: str = "") -> str:
    """Sends a folder, unless its job is pending, running or has succeeded.

    Args:
      folder: Folder that `make_folder` returned.
      address: Address of the cluster.
      candidate: Name of the candidate, shown in lists of jobs.

    Returns:
      Id of the job.

    Raises:
      FolderError: If the folder is damaged.
      ClusterError: If no node of the cluster has enough CPUs and GPUs for the job, or if the
        cluster cannot be reached.
    """
    job = folder.name
    config = read_folder(folder, job).config
    with connected(address, start=True) as server:
        status = _state(server, job).status
        if status in (FAILED, STOPPED):
            server.client.delete_job(job)
        elif status != LOST:
            return job
        cpus, gpus = _needs(config, server.nodes())
        try:
            server.client.submit_job(
                entrypoint=f"{_ENTRYPOINT} {job}",
                submission_id=job,
                runtime_env={"working_dir": str(folder)},
                metadata={"candidate": candidate},
                entrypoint_num_cpus=cpus,
                entrypoint_num_gpus=gpus or None,
            )
        except RuntimeError:
            # Otherwise another process has already submitted the job.
            if _state(server, job).status == LOST:
                raise
    return job


def poll(job: str, address: str) -> State:
    """Returns the state of a job.

    Args:
      job: Id of the job.
      address: Address of the cluster.

    Raises:
      ClusterError: If the cluster cannot be reached.
    """
    with connected(address) as server:
        return _state(server, job) if server else State(job, LOST, "no local Ray runs")


def log(job: str, address: str) -> str:
    """Returns the log of a job so far, or "" if the job is not on the cluster.

    Args:
      job: Id of the job.
      address: Address of the cluster.

    Raises:
      ClusterError: If the cluster cannot be reached.
    """
    with connected(address) as server:
        known = server and _state(server, job).status != LOST
        return server.client.get_job_logs(job) if known else ""


def result(job: str, address: str) -> dict[str, Any] | None:
    """Returns the result of a job, or None if the job has not succeeded.

    Args:
      job: Id of the job.
      address: Address of the cluster.

    Raises:
      EvidenceError: If the result is damaged or belongs to another job.
      ClusterError: If the cluster cannot be reached.
    """
    succeeded = poll(job, address).status == SUCCEEDED
    return registry.from_log(log(job, address), job) if succeeded else None


def listed(address: str) -> list[State]:
    """Returns the states of all jobs on a cluster that train candidates, oldest first.

    Args:
      address: Address of the cluster.

    Raises:
      ClusterError: If the cluster cannot be reached.
    """
    with connected(address) as server:
        jobs = server.client.list_jobs() if server else []
    own = [job for job in jobs if (job.submission_id or "").startswith(PREFIX)]
    states = [_as_state(job.submission_id, job) for job in own]
    return sorted(states, key=lambda state: state.started)


def _state(server: Server, job: str) -> State:
    try:
        return _as_state(job, server.client.get_job_info(job))
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
        return State(job, LOST, "the cluster has no such job")


def _as_state(job: str, info: Any) -> State:
    lines = [line for line in (info.message or "").splitlines() if line.strip()]
    name = (info.metadata or {}).get("candidate", "")
    status, started = info.status.value.lower(), (info.start_time or 0) / 1000
    return State(job, status, lines[0] if lines else "", name, started)


def _needs(config: ConfigDict, nodes: list[dict[str, float]]) -> tuple[int, int]:
    """Returns the numbers of CPUs and GPUs of a job; ClusterError if no node has enough."""
    gpus = config.ray.gpus
    if gpus == _AUTOMATIC:
        gpus = config.data_parallel if any(node.get("GPU") for node in nodes) else 0
    cpus = 1 if gpus else config.threads
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        raise ClusterError(
            f"config.threads and config.ray.gpus must fit into one node of the cluster; no node "
            f"has {cpus} CPUs and {gpus} GPUs"
        )
    return cpus, gpus


class JobPool(NamedTuple):
    """Pool that trains each batch of a `RayEngine` as a job."""

    config: ConfigDict
    address: str
    sent: Path  # directory of the jobs' folders
    text: dict[str, str]  # expected fingerprints of corpus and tokenizer

    def train(
        self,
        wanted: tuple[str, str],
        batches: Sequence[list[Job]],
        on_progress: Callable[[Progress], None],
    ) -> Iterator[tuple[int, list[RunResult] | Lost] | None]:
        """Sends all batches, then yields the number and results of each batch.

        This implements `ray_engine.Pool.train`. Jobs continue after the generator is closed, and a
        later call fetches their results.

        Args:
          wanted: Not used; part of the interface of the pool.
          batches: Batches of training runs. All runs of a batch have the same number of steps.
          on_progress: Callback that takes the progress of a batch when its job has ended.

        Yields:
          None while the jobs are sent or run, and otherwise the number of a batch with its results,
          or with `Lost` if its job has no result.

        Raises:
          EvidenceError: If the result of a job is damaged.
          ClusterError: If the cluster cannot be reached.
        """
        names = []
        for jobs in batches:
            submission = Submission(portable(self.config), {"candidate": jobs}, self.text)
            folder = make_folder(submission, self.sent, self.config.data.corpus)
            names.append(submit(folder, self.address, jobs[0].key))
            yield None
        for number, (name, jobs) in enumerate(zip(names, batches, strict=True)):
            while (state := poll(name, self.address)).status not in ENDED:
                yield None
                time.sleep(_POLL_SECONDS)
            document = result(name, self.address)
            if document is None:
                yield number, Lost(f"{LOST_RUN}: job {name} is {state.status} ({state.message})")
                continue
            try:
                results = [result_from_json(run) for run in document["candidate"]]
            except ValueError as error:
                raise EvidenceError(f"the result of job {name} is damaged: {error}") from None
            bpb, steps = np.array([run.val_bpb for run in results]), jobs[0].steps
            loss = np.stack([run.telemetry[:, TELEMETRY.index("loss")] for run in results])
            on_progress(Progress(len(jobs), steps, steps, loss, bpb, tuple(j.key for j in jobs)))
            yield number, results
