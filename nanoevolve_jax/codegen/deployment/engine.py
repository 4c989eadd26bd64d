"""An engine whose runs are jobs of a Ray cluster, one folder a run, for campaigns of code."""

import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
from ml_collections import ConfigDict

from nanoevolve_jax.codegen.deployment import cluster, reply
from nanoevolve_jax.codegen.deployment.folder import Order, make_folder, portable
from nanoevolve_jax.evidence.comparison import Arm, Bench
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.execution.checkpoint import Interrupted
from nanoevolve_jax.execution.engine import Progress
from nanoevolve_jax.execution.job import Job
from nanoevolve_jax.execution.json_files import Count, typed
from nanoevolve_jax.execution.results import RunResult, lost_result
from nanoevolve_jax.execution.settings import ConfigError
from nanoevolve_jax.execution.train import TELEMETRY, Task

_POLL_SECONDS = 1.0


class DeployedEngine(NamedTuple):
    """An `Engine` that sends every run to a cluster; what is there already is not sent again."""

    task: Task
    config: ConfigDict  # its recipe is the calibrated one
    address: str  # see `server.py`
    sent: Path  # where the folders of jobs lie
    text: dict[str, str]  # fingerprints of corpus and tokenizer
    stopping: Callable[[], bool]
    width: int = 1

    def run(
        self, jobs: Sequence[Job], on_progress: Callable[[Progress], None] = lambda progress: None
    ) -> Generator[RunResult, None, None]:
        """Sends all jobs at once and yields one result a job, in order.

        Raises:
          ClusterError: if the cluster cannot be reached.
          ConfigError: for a run that no folder can describe.
          Interrupted: if someone asked to stop; the jobs go on, and are found again.
        """
        names = []
        for job in jobs:
            if self.stopping():
                raise Interrupted
            folder, key = self._folder(job), job.key
            names.append(cluster.submit(folder, self.address, candidate=key, again=True))
        for job, name in zip(jobs, names, strict=True):
            while (state := cluster.poll(name, self.address)).status not in cluster.ENDED:
                if self.stopping():
                    raise Interrupted
                time.sleep(_POLL_SECONDS)
            document = cluster.result(name, self.address)
            if document is None:
                yield lost_result(f"lost: job {name} is {state.status} ({state.message})")
                continue
            result = result_of(document["candidate"][0])
            loss = result.telemetry[:, TELEMETRY.index("loss")][None]
            bpb = np.array([result.val_bpb])
            on_progress(Progress(1, job.steps, job.steps, loss, bpb, (job.key,)))
            yield result

    def checkpoint_bytes(self, job: Job) -> int:
        """None: the state of a run stays where it is trained."""
        del job
        return 0

    def _folder(self, job: Job) -> Path:
        bench = Bench(self.config, None)
        arm = Arm("candidate", job.candidate.spec, {}, code=job.candidate.code)
        usual = bench.candidate(arm, job.steps).recipe
        arm = arm._replace(lr_factor=job.candidate.recipe.matrix_lr / usual.matrix_lr)
        described = bench.job(arm, job.seed, job.fold, job.steps)
        if described.key != job.key:
            raise ConfigError(
                "config.codegen.address asks for runs as jobs, and one has a recipe, a gate or a "
                "disturbance of its own; allowed: screening without controls, or none"
            )
        order = Order(portable(self.config), arm, None, (job.seed,), job.fold, job.steps, self.text)
        return make_folder(order, self.sent, self.config.data.corpus)


class _Packed(TypedDict):
    shape: tuple[Count, Count]
    float32: str


class _RunDocument(TypedDict):
    val_bpb: float | None
    train_loss: float | None
    failure: str | None
    failed_step: int | None
    steps: Count
    telemetry: _Packed
    curve: list[tuple[int, float | None]]


def result_of(run: dict[str, Any]) -> RunResult:
    """Returns the result of a run as a job reported it.

    Raises:
      EvidenceError: if it is of another form.
    """

    def number(value: float | None) -> float:
        return float("nan") if value is None else float(value)

    try:
        typed(run, _RunDocument)
        telemetry = reply.unpack(run["telemetry"])
        if telemetry.shape[1] != len(TELEMETRY):
            raise ValueError(f"telemetry must have {len(TELEMETRY)} columns")
    except ValueError as error:
        raise EvidenceError(f"the result in the job's log is damaged: {error}") from None
    return RunResult(
        val_bpb=number(run["val_bpb"]),
        train_loss=number(run["train_loss"]),
        failure=run["failure"],
        failed_step=run["failed_step"],
        steps=run["steps"],
        telemetry=telemetry,
        curve=np.array([[step, number(bpb)] for step, bpb in run["curve"]], np.float64),
    )
