"""Every training run that evidence rests on, kept once: a run that is known is not made again.

That makes every command resumable, every comparison repeatable, and the compute that was
spent, failures included, a sum over a file.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np

from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.score import instability
from nanoevolve_jax.evidence.trajectories import read_telemetry, save_telemetry
from nanoevolve_jax.evidence.work import MAIN
from nanoevolve_jax.execution import journal
from nanoevolve_jax.execution.engine import ClusterError, Engine, Progress, named
from nanoevolve_jax.execution.job import Job, JobDocument, job_to_json
from nanoevolve_jax.execution.journal import Journal
from nanoevolve_jax.execution.json_files import Count, Id, finite_or_null, typed
from nanoevolve_jax.execution.results import LOST, RunResult
from nanoevolve_jax.execution.train import TELEMETRY

FILE = "runs.jsonl"


class Run(NamedTuple):
    """What one training run gave."""

    key: str
    stage: str
    program: str  # the engine that made it: "main", or one with other static shapes
    job: dict[str, Any]
    val_bpb: float  # NaN if it failed
    train_loss: float
    failure: str | None
    failed_step: int | None
    steps: int  # completed with finite numbers
    tokens: int  # trained on, those of failed steps included
    curve: list[list[float]]  # [step, validation bpb]
    instability: float  # nats; NaN if it failed


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
    """The JSON object of a run; what is not finite becomes null."""
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
    """The runs in whole lines, and the journal that holds them."""
    try:
        found = journal.read(path, older=older)
    except (OSError, ValueError) as error:
        raise EvidenceError(str(error)) from None
    runs = []
    for number, document in enumerate(found.documents, start=1):
        try:
            runs.append(_from_document(document))
        except ValueError as error:
            raise EvidenceError(f"{path} line {number} is damaged: {error}") from None
    return runs, found


def read_runs(folder: Path, *, older: bool = False) -> list[Run]:
    """The runs of a folder, an unfinished last line left out; nothing is changed.

    Args:
      folder: Run folder.
      older: Whether seals may be those of an older format, see `journal.read`.

    Raises:
      EvidenceError: if a complete line was changed.
    """
    return _read(folder / FILE, older)[0]


def spent_by_stage(runs: Iterable[Run]) -> dict[str, dict[str, int]]:
    """Runs, failed runs and tokens, by stage."""
    total: dict[str, dict[str, int]] = {}
    for run in runs:
        stage = total.setdefault(run.stage, {"runs": 0, "failed": 0, "tokens": 0})
        stage["runs"] += 1
        stage["failed"] += run.failure is not None
        stage["tokens"] += run.tokens
    return total


class Runs:
    """The runs of one folder: those on disk, and an engine for those that are missing."""

    def __init__(
        self,
        folder: Path,
        engines: dict[str, Callable[[], Engine]],
        on_progress: Callable[[Progress], None] = lambda progress: None,
        log: Callable[[str], None] = lambda line: None,
        on_event: Sequence[Callable[[Run], None]] = (),
    ):
        """Reads what is known.

        Args:
          folder: of `runs.jsonl` and `telemetry/`.
          engines: by name, makers of engines; "main" is the one most runs use.
          on_progress: hears of running jobs.
          log: Callback that takes one line for the user.
          on_event: Callbacks that take each run in file order, starting with known runs.

        Raises:
          EvidenceError: if a complete line was changed; a torn last one is cut off.
        """
        self.folder = folder
        self._engines = engines
        self._made: dict[str, Engine] = {}
        self._on_progress, self._log, self._on_event = on_progress, log, on_event
        self._known: dict[str, Run] = {}
        for run in self._load():
            self._know(run)

    def _load(self) -> list[Run]:
        path = self.folder / FILE
        runs, found = _read(path)
        if found.torn:  # by a kill in the middle of a write
            self._log(f"{path}: an unfinished line is cut off; its run is made again")
            journal.cut(path, found.size)
        return runs

    def engine(self, program: str = MAIN) -> Engine:
        """The engine of a name, made when it is first needed."""
        if program not in self._made:
            self._made[program] = self._engines[program]()
        return self._made[program]

    def run(self, jobs: Sequence[Job], stage: str, program: str = MAIN) -> list[Run]:
        """Makes the runs that are missing; returns one for every job, in order."""
        keys = [f"{program}-{job.key}" for job in jobs]
        missing = {k: j for k, j in zip(keys, jobs, strict=True) if k not in self._known}
        if missing:
            engine = self.engine(program)
            on_progress = named(self._on_progress, self._names(missing, stage))
            with contextlib.closing(engine.run(list(missing.values()), on_progress)) as results:
                for (key, job), result in zip(missing.items(), results, strict=True):
                    if (result.failure or "").startswith(LOST):
                        # A failed machine says nothing about the candidate.
                        raise ClusterError(
                            f"a run of {stage!r} was {result.failure}; the same command tries it "
                            "again"
                        )
                    tokens = engine.task.batch_tokens
                    self._keep(_as_run(key, stage, program, job, result, tokens), result)
        return [self._known[key] for key in keys]

    def known_steps(self) -> int:
        """Candidate-steps of all runs so far."""
        return sum(run.job["steps"] for run in self._known.values())

    def telemetry(self, run: Run) -> dict[str, np.ndarray]:
        """A run's per-step columns, named as in `TELEMETRY`.

        Raises:
          EvidenceError: if the file is missing or damaged.
        """
        columns = read_telemetry(self.folder, run.key)
        if columns is None:
            raise EvidenceError(f"the telemetry of run {run.key} in {self.folder} is missing")
        return columns

    def spent(self) -> dict[str, dict[str, int]]:
        """Runs, failed runs and tokens by stage, over everything ever made in this folder."""
        return spent_by_stage(self._known.values())

    def _keep(self, run: Run, result: RunResult) -> None:
        columns = dict(zip(TELEMETRY, result.telemetry.T, strict=True))
        save_telemetry(self.folder, run.key, columns)
        journal.append(self.folder / FILE, [to_document(run)])
        self._know(run)

    def _know(self, run: Run) -> None:
        self._known[run.key] = run
        for on_event in self._on_event:
            on_event(run)

    def _names(self, missing: Mapping[str, Job], stage: str) -> dict[str, str]:
        """What to call jobs while they run: their stage and number in it, by the job's key."""
        first = 1 + sum(run.stage == stage for run in self._known.values())
        jobs = enumerate(missing.values(), start=first)
        return {job.key: f"{stage} {number}" for number, job in jobs}


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
    """Final validation bits per byte; float64[runs], NaN where a run failed."""
    return np.array([run.val_bpb for run in runs], np.float64)
