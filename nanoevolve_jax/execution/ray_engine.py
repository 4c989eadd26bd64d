"""The Ray engine: the jobs of a search, a batch of lanes at a time, on the workers of a cluster.

Workers get the batches that a local engine would have made, so with the same lanes, devices and
threads they give the same bits, in whatever order they end.
"""

import contextlib
import hashlib
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from nanoevolve_jax.execution.checkpoint import Checkpoints
from nanoevolve_jax.execution.engine import Progress, batches
from nanoevolve_jax.execution.job import Job
from nanoevolve_jax.execution.ray_pool import Lost, Pool
from nanoevolve_jax.execution.results import RunResult, lost_result
from nanoevolve_jax.execution.resume import Call, from_checkpoint, to_checkpoint
from nanoevolve_jax.execution.train import Task


class RayEngine(NamedTuple):
    """An `Engine` whose batches are trained elsewhere."""

    task: Task
    pool: Pool
    wanted: tuple[str, str]  # config as JSON and program, of the workers' engines
    width: int  # jobs of a full batch
    checkpoints: Checkpoints | None = None

    def run(
        self, jobs: Sequence[Job], on_progress: Callable[[Progress], None] = lambda progress: None
    ) -> Generator[RunResult, None, None]:
        """Yields one result a job, in order; a batch that was lost too often gives failures.

        Finished batches are kept at a kill or a stop, those under way are begun again.

        Raises:
          ClusterError: if there is nobody to train them.
          CheckpointError, Interrupted: see `Checkpoints.boundary`.
        """
        keys = [job.key for job in jobs]
        known = self._resume(keys)
        missing = [job for job, key in zip(jobs, keys, strict=True) if key not in known]
        groups = batches(missing, self.width)
        with contextlib.closing(self.pool.train(self.wanted, groups, on_progress)) as training:
            for key in keys:
                while key not in known:
                    ended = next(training)
                    if ended is not None:
                        number, results = ended
                        known |= _by_key(groups[number], results)
                    if ended is not None or self._stopping():
                        self._boundary(known)
                yield known[key]

    def checkpoint_bytes(self, job: Job) -> int:
        """None to speak of: the state of a batch stays with its worker."""
        del job
        return 0

    @property
    def _program(self) -> str:
        facts = repr((self.task, self.wanted[1], self.width)).encode()
        return f"ray-{hashlib.sha256(facts).hexdigest()[:16]}"

    def _stopping(self) -> bool:
        return self.checkpoints is not None and self.checkpoints.stopping()

    def _boundary(self, known: dict[str, RunResult]) -> None:
        if self.checkpoints is not None:
            self.checkpoints.boundary(lambda: to_checkpoint(Call(self._program, known)))

    def _resume(self, keys: list[str]) -> dict[str, RunResult]:
        """Results of these jobs that an earlier process has kept."""

        def wanted(search):
            return search["program"] == self._program and not set(search["finished"]).isdisjoint(
                keys
            )

        checkpoint = self.checkpoints and self.checkpoints.restore(wanted, None)
        if not checkpoint:
            return {}
        known = from_checkpoint(checkpoint).finished
        self.checkpoints.log(f"resuming: {len(known)} jobs finished")
        return known


def _by_key(jobs: Sequence[Job], results: Sequence[RunResult] | Lost) -> dict[str, RunResult]:
    """Results by their jobs' keys, in arrays of this process: Ray takes its own back."""
    if isinstance(results, Lost):
        return {job.key: lost_result(results.reason) for job in jobs}
    copied = jax.tree.map(lambda x: np.array(x) if isinstance(x, np.ndarray) else x, results)
    return {job.key: result for job, result in zip(jobs, copied, strict=True)}
