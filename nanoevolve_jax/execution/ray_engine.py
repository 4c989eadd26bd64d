"""Engine that trains jobs on other machines, as workers or jobs of a Ray cluster.

Jobs are grouped into the same batches as in a local engine. With the same lanes, devices and
threads, results are therefore bitwise identical, regardless of the order in which batches finish.
"""

import contextlib
import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from nanoevolve_jax.execution.checkpoint import Call, Checkpoints, from_checkpoint, to_checkpoint
from nanoevolve_jax.execution.engine import Progress, batches
from nanoevolve_jax.execution.job import Job
from nanoevolve_jax.execution.results import Lost, RunResult, lost_result
from nanoevolve_jax.execution.train import Task


class Pool(Protocol):
    """Interface of a pool of machines that train batches of jobs."""

    def train(
        self,
        wanted: tuple[str, str],
        batches: Sequence[list[Job]],
        on_progress: Callable[[Progress], None],
    ) -> Iterator[tuple[int, list[RunResult] | Lost] | None]:
        """Trains batches and yields their results.

        Args:
          wanted: Config as JSON and name of the program, which select the engine of a machine.
          batches: Batches of jobs.
          on_progress: Callback that takes the `Progress` of running batches.

        Yields:
          Tuple of the index of a batch and its results, or the reason why it was lost, in the order
          in which batches finish. None about once per second, so that the caller can check whether
          to stop.
        """
        ...


class RayEngine(NamedTuple):
    """An `Engine` whose batches are trained by a pool of other machines."""

    task: Task  # static part of the training program
    pool: Pool  # machines that train
    wanted: tuple[str, str]  # config as JSON and name of the program, for the engines of the pool
    width: int  # number of jobs in a full batch
    checkpoints: Checkpoints | None = None  # checkpoints of the run folder, if any

    def run(
        self, jobs: Sequence[Job], on_progress: Callable[[Progress], None] = lambda progress: None
    ) -> Generator[RunResult, None, None]:
        """Yields one result per job, in order.

        The jobs of a batch that was lost too often yield failures. If the process is stopped or
        killed and restarted, finished batches are kept and unfinished batches are repeated.

        Args:
          jobs: Jobs to train.
          on_progress: Callback that takes the `Progress` of running batches.

        Raises:
          ClusterError: If none of the machines can train.
          CheckpointError: If a checkpoint cannot be written.
          Interrupted: If the user asked to stop.
        """
        keys = [job.key for job in jobs]
        finished = self._resume(keys)
        missing = [job for job in jobs if job.key not in finished]
        groups = batches(missing, self.width)
        with contextlib.closing(self.pool.train(self.wanted, groups, on_progress)) as training:
            for key in keys:
                while key not in finished:
                    ended = next(training)
                    if ended is not None:
                        number, results = ended
                        finished |= _by_key(groups[number], results)
                    if ended is not None or self._stopping():
                        self._boundary(finished)
                yield finished[key]

    def checkpoint_bytes(self, job: Job) -> int:
        """Returns 0, because checkpoints of this engine do not hold the state of training.

        Args:
          job: Example of the jobs to be trained.
        """
        del job
        return 0

    @property
    def _program(self) -> str:
        facts = repr((self.task, self.wanted[1], self.width)).encode()
        return f"ray-{hashlib.sha256(facts).hexdigest()[:16]}"

    def _stopping(self) -> bool:
        return self.checkpoints is not None and self.checkpoints.stopping()

    def _boundary(self, finished: dict[str, RunResult]) -> None:
        if self.checkpoints is not None:
            self.checkpoints.boundary(lambda: to_checkpoint(Call(self._program, finished)))

    def _resume(self, keys: list[str]) -> dict[str, RunResult]:
        """Returns the saved results of an earlier process for these jobs, by key."""

        def wanted(search: dict[str, Any]) -> bool:
            known = not set(search["finished"]).isdisjoint(keys)
            return search["program"] == self._program and known

        checkpoint = self.checkpoints and self.checkpoints.restore(wanted, None)
        if not checkpoint:
            return {}
        finished = from_checkpoint(checkpoint).finished
        self.checkpoints.log(f"resuming: {len(finished)} jobs finished")
        return finished


def _by_key(jobs: Sequence[Job], results: Sequence[RunResult] | Lost) -> dict[str, RunResult]:
    """Returns results by the keys of their jobs, with copies of all arrays."""
    if isinstance(results, Lost):
        return {job.key: lost_result(results.reason) for job in jobs}
    copied = jax.tree.map(lambda x: np.array(x) if isinstance(x, np.ndarray) else x, results)
    return {job.key: result for job, result in zip(jobs, copied, strict=True)}
