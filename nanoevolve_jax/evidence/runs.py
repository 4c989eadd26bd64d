"""The training runs of a folder, which are stored so that they are not trained again.

This makes it possible to resume commands, to repeat comparisons, and to sum up the compute that was
spent, including failed runs.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict

import numpy as np

from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.score import instability
from nanoevolve_jax.evidence.trajectories import read_telemetry, save_telemetry
from nanoevolve_jax.execution import journal
from nanoevolve_jax.execution.engine import ClusterError, Engine, Progress, named
from nanoevolve_jax.execution.job import Job, JobDocument, job_to_json
from nanoevolve_jax.execution.journal import Journal
from nanoevolve_jax.execution.json_files import Count, Id, finite_or_null, typed
from nanoevolve_jax.execution.results import LOST, RunResult
from nanoevolve_jax.execution.train import TELEMETRY

FILE = "runs.jsonl"
MAIN = "main"  # the program that most runs use


class Run(NamedTuple):
    """The result of one training run."""

    key: str  # program and key of the job
    stage: str
    program: str  # program that trained it: "main", or one with other static shapes
    job: dict[str, Any]  # JSON form of the job
    val_bpb: float  # final validation bits per byte; NaN if it failed
    train_loss: float
    failure: str | None  # reason of a failure
    failed_step: int | None
    steps: int  # number of steps with finite results
    tokens: int  # number of tokens, including those of the failed step
    curve: list[list[float]]  # pairs of step and validation bpb
    instability: float  # see `score.instability`, in nats; NaN if it failed


class RunSource(Protocol):
    """A source of training runs, such as `Runs` or `work.DryRuns`."""

    def engine(self, program: str = MAIN) -> Any:
        """Returns the engine of a program. Its `width` is the number of jobs in a full batch."""

    def run(self, jobs: Sequence[Job], stage: str, program: str = MAIN) -> list[Run]:
        """Returns a run for each job, in order.

        Args:
          jobs: Jobs to run.
          stage: Stage of the runs.
          program: Program that trains the jobs.
        """

    def telemetry(self, run: Run) -> dict[str, np.ndarray]:
        """Returns the per-step columns of a run."""


_NUMBERS = ("val_bpb", "train_loss", "instability")


class _RunDocument(TypedDict):
    key: Id
    stage: str
    program: str
    job: JobDocument
    val_bpb: float | None
    train_loss: float | None
    failure: str | None
    failed_step: int | None
    steps: Count
    tokens: Count
    curve: list[tuple[int, float | None]]
    instability: float | None


def to_document(run: Run) -> dict[str, Any]:
    """Returns a run as a JSON object. Numbers that are not finite become null."""
    document = run._asdict()
    return document | {name: finite_or_null(document[name]) for name in (*_NUMBERS, "curve")}


def _from_document(document: dict[str, Any]) -> Run:
    typed(document, _RunDocument)
    if unknown := sorted(set(document) - set(Run._fields)):
        raise ValueError(f"its fields must be {', '.join(Run._fields)}, got {unknown[0]!r}")
    nan = float("nan")
    numbers = {name: nan if document[name] is None else document[name] for name in _NUMBERS}
    curve = [[step, nan if bpb is None else bpb] for step, bpb in document["curve"]]
    return Run(**document | numbers | {"curve": curve})


def _read(path: Path, older: bool = False) -> tuple[list[Run], Journal]:
    """Returns the runs of all complete lines, and the journal that contains them."""
    try:
        lines = journal.read(path, older=older)
    except (OSError, ValueError) as error:
        raise EvidenceError(str(error)) from None
    runs = []
    for number, document in enumerate(lines.documents, start=1):
        try:
            runs.append(_from_document(document))
        except ValueError as error:
            raise EvidenceError(f"{path} line {number} is damaged: {error}") from None
    return runs, lines


def read_runs(folder: Path, *, older: bool = False) -> list[Run]:
    """Reads the runs of a folder without changing it. An unfinished last line is ignored.

    Args:
      folder: Run folder.
      older: Whether seals may have an older format, see `journal.read`.

    Returns:
      Runs in the order of the file.

    Raises:
      EvidenceError: If a complete line was changed.
    """
    return _read(folder / FILE, older)[0]


def spent_by_stage(runs: Iterable[Run]) -> dict[str, dict[str, int]]:
    """Returns the numbers of runs, failed runs and tokens by stage."""
    total: dict[str, dict[str, int]] = {}
    for run in runs:
        stage = total.setdefault(run.stage, {"runs": 0, "failed": 0, "tokens": 0})
        stage["runs"] += 1
        stage["failed"] += run.failure is not None
        stage["tokens"] += run.tokens
    return total


class Runs:
    """The runs of a folder and the engines that train missing runs."""

    def __init__(
        self,
        folder: Path,
        engines: dict[str, Callable[[], Engine]],
        on_progress: Callable[[Progress], None] = lambda progress: None,
        log: Callable[[str], None] = lambda line: None,
        on_event: Sequence[Callable[[Run], None]] = (),
    ):
        """Reads the known runs. An unfinished last line is cut off.

        Args:
          folder: Run folder, which contains `runs.jsonl` and `telemetry/`.
          engines: Functions that create engines, by program. Most runs use the program "main".
          on_progress: Callback that takes the progress of running jobs.
          log: Callback that takes one line for the user.
          on_event: Callbacks that take each run in file order, starting with known runs.

        Raises:
          EvidenceError: If a complete line was changed.
        """
        self.folder = folder
        self._makers = engines
        self._engines: dict[str, Engine] = {}
        self._on_progress, self._log, self._on_event = on_progress, log, on_event
        self._known: dict[str, Run] = {}
        for run in self._load():
            self._add(run)

    def _load(self) -> list[Run]:
        path = self.folder / FILE
        runs, lines = _read(path)
        if lines.torn:  # a process was killed while it wrote the line
            self._log(f"{path}: an unfinished line is cut off; its run is trained again")
            journal.cut(path, lines.size)
        return runs

    def engine(self, program: str = MAIN) -> Engine:
        """Returns the engine of a program, which is created when it is first needed."""
        if program not in self._engines:
            self._engines[program] = self._makers[program]()
        return self._engines[program]

    def run(self, jobs: Sequence[Job], stage: str, program: str = MAIN) -> list[Run]:
        """Returns a run for each job, in order, after training those that are missing.

        Args:
          jobs: Jobs to run.
          stage: Stage of the new runs in `runs.jsonl`.
          program: Program that trains the jobs.

        Raises:
          ClusterError: If a machine was lost, which is not a failure of the candidate.
        """
        missing = {job.key: job for job in jobs if f"{program}-{job.key}" not in self._known}
        if missing:
            engine = self.engine(program)
            on_progress = named(self._on_progress, self._names(missing, stage))
            with contextlib.closing(engine.run(list(missing.values()), on_progress)) as results:
                for (key, job), result in zip(missing.items(), results, strict=True):
                    if (result.failure or "").startswith(LOST):
                        raise ClusterError(
                            f"a run of {stage!r} was {result.failure}; the same command tries it "
                            "again"
                        )
                    tokens = engine.task.batch_tokens
                    run = _as_run(f"{program}-{key}", stage, program, job, result, tokens)
                    self._keep(run, result)
        return [self._known[f"{program}-{job.key}"] for job in jobs]

    def known_steps(self) -> int:
        """Returns the sum of the horizons of all known runs, in steps."""
        return sum(run.job["steps"] for run in self._known.values())

    def telemetry(self, run: Run) -> dict[str, np.ndarray]:
        """Returns the telemetry of a run.

        Args:
          run: Run of this folder.

        Returns:
          Columns by name as in `TELEMETRY`; [steps] each.

        Raises:
          EvidenceError: If the file is missing or damaged.
        """
        columns = read_telemetry(self.folder, run.key)
        if columns is None:
            raise EvidenceError(f"the telemetry of run {run.key} in {self.folder} is missing")
        return columns

    def spent(self) -> dict[str, dict[str, int]]:
        """Returns the numbers of runs, failed runs and tokens of this folder by stage."""
        return spent_by_stage(self._known.values())

    def _keep(self, run: Run, result: RunResult) -> None:
        columns = dict(zip(TELEMETRY, result.telemetry.T, strict=True))
        save_telemetry(self.folder, run.key, columns)
        journal.append(self.folder / FILE, [to_document(run)])
        self._add(run)

    def _add(self, run: Run) -> None:
        self._known[run.key] = run
        for on_event in self._on_event:
            on_event(run)

    def _names(self, missing: Iterable[str], stage: str) -> dict[str, str]:
        """Returns the name of each job for progress, which is its stage and its number in it."""
        first = 1 + sum(run.stage == stage for run in self._known.values())
        return {key: f"{stage} {number}" for number, key in enumerate(missing, start=first)}


def _as_run(
    key: str, stage: str, program: str, job: Job, result: RunResult, batch_tokens: float
) -> Run:
    losses = result.telemetry[:, TELEMETRY.index("loss")]
    trained = len(result.telemetry) + (result.failure is not None)
    return Run(
        key=key,
        stage=stage,
        program=program,
        job=job_to_json(job),
        val_bpb=result.val_bpb,
        train_loss=result.train_loss,
        failure=result.failure,
        failed_step=result.failed_step,
        steps=result.steps,
        tokens=int(batch_tokens * min(trained, job.steps)),
        curve=[[int(step), float(bpb)] for step, bpb in result.curve],
        instability=float("nan") if result.failure else instability(losses),
    )


def bpb(runs: Sequence[Run]) -> np.ndarray:
    """Returns the final validation bits per byte of runs; float64[runs], NaN for failed runs."""
    return np.array([run.val_bpb for run in runs], np.float64)
