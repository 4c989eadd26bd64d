"""Engine protocol for training lists of jobs, and the engine for the devices of this process.

The host loops over batches of lanes and over segments. Between segments it evaluates, reports
progress, saves checkpoints and stops batches in which every run has failed. A batch that is not
full is padded with copies of its last job, because a smaller program would have to be compiled and
would round differently.
"""

import hashlib
import itertools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from absl import logging

from nanoevolve_jax.errors import UserError
from nanoevolve_jax.execution import compile_check, hosts
from nanoevolve_jax.execution.checkpoint import (
    Batch,
    Call,
    Checkpoints,
    from_checkpoint,
    to_checkpoint,
    tree_bytes,
)
from nanoevolve_jax.execution.compile_check import CompileLimits, TrainingProgram
from nanoevolve_jax.execution.cost import matrix_shapes
from nanoevolve_jax.execution.job import Job, Stream, feed
from nanoevolve_jax.execution.measurements import OutOfMemoryError, is_out_of_memory
from nanoevolve_jax.execution.population import (
    POPULATION,
    Programs,
    make_programs,
    stack_candidates,
    with_code,
)
from nanoevolve_jax.execution.results import RunResult, dead_result, run_result
from nanoevolve_jax.execution.train import ALIVE, TELEMETRY, Segment, Task, TrainState
from nanoevolve_jax.model.loss import bits_per_byte
from nanoevolve_jax.policy.certified import Code


class ClusterError(UserError):
    """Error about a cluster or a machine that cannot train."""


class Evaluation(NamedTuple):
    """Batched validation sets, one per fold. All have the same shape."""

    folds: tuple[np.ndarray, ...]  # validation rows per fold, int32[N, B, T + 1]
    token_bytes: np.ndarray  # bytes per token, int32[vocab]


class Progress(NamedTuple):
    """Progress of a batch."""

    jobs: int  # number of jobs, without padding
    step: int  # number of completed steps
    steps: int  # horizon of the batch
    loss: np.ndarray  # training losses since the previous report, float32[jobs, K]
    val_bpb: np.ndarray  # latest validation bits per byte, float64[jobs]
    names: tuple[str, ...]  # keys or display names of the jobs
    batch: int = 0  # index of the batch if several run at once


def named(
    on_progress: Callable[[Progress], None], names: Mapping[str, str]
) -> Callable[[Progress], None]:
    """Returns a progress callback that replaces the keys of jobs with display names.

    Args:
      on_progress: Callback that takes the renamed `Progress`.
      names: Display names by key. Keys without a display name stay as they are.
    """

    def renamed(progress: Progress) -> None:
        on_progress(progress._replace(names=tuple(names.get(k, k) for k in progress.names)))

    return renamed


def validation_sets(
    folds: Sequence[np.ndarray], count: int, batch_size: int, token_bytes: Any
) -> Evaluation:
    """Returns the first rows of every fold as full batches.

    Args:
      folds: Rows per fold, each int[N, T + 1].
      count: Number of rows to use per fold, reduced to the size of the smallest fold.
      batch_size: Largest number of rows per batch.
      token_bytes: Bytes per token, int[vocab].
    """
    count = min(count, *(len(rows) for rows in folds))
    size = min(batch_size, count)

    def batched(rows):
        return np.asarray(rows[: count // size * size], np.int32).reshape(-1, size, rows.shape[1])

    return Evaluation(tuple(map(batched, folds)), np.asarray(token_bytes, np.int32))


def evaluation_steps(total_steps: int, evaluations: int, segment_steps: int) -> set[int]:
    """Returns the segment ends at which to evaluate, evenly spaced and including the last step.

    Args:
      total_steps: Horizon in steps.
      evaluations: Number of evaluations after step 0.
      segment_steps: Steps per segment.
    """
    ends = [*range(segment_steps, total_steps, segment_steps), total_steps]
    wanted = [total_steps * (i + 1) / evaluations for i in range(evaluations)]
    return {min(ends, key=lambda end: (abs(end - step), end)) for step in wanted} | {total_steps}


def batches(jobs: Sequence[Job], width: int) -> list[list[Job]]:
    """Returns the jobs in order, grouped into batches.

    The jobs of a batch share their horizon, validation fold and rewritten code.

    Args:
      jobs: Jobs to group.
      width: Largest number of jobs per batch.
    """
    groups = itertools.groupby(jobs, key=lambda job: (job.steps, job.fold, job.candidate.code))
    alike = [list(group) for _, group in groups]
    return [group[i : i + width] for group in alike for i in range(0, len(group), width)]


class Engine(Protocol):
    """Interface of an engine, which trains jobs in this process or on other machines."""

    @property
    def task(self) -> Task:
        """Static part of the training program."""
        ...

    @property
    def width(self) -> int:
        """Number of jobs in a full batch."""
        ...

    def run(
        self, jobs: Sequence[Job], on_progress: Callable[[Progress], None] = ...
    ) -> Generator[RunResult, None, None]:
        """Yields one result per job, in order.

        Always close the generator, for example with `contextlib.closing`. Otherwise workers may
        continue to train after an exception in the caller.

        Args:
          jobs: Jobs to train.
          on_progress: Callback that takes the `Progress` of a batch after each segment.
        """
        ...

    def checkpoint_bytes(self, job: Job) -> int:
        """Returns the size in bytes of the largest checkpoint that the run folder will hold.

        Args:
          job: Example of the jobs to be trained.
        """
        ...


class LocalEngine(NamedTuple):
    """An `Engine` that trains jobs on the devices of this process."""

    task: Task  # static part of the training program
    programs: Programs  # compiled programs of the task
    stream: Stream  # training text
    evaluation: Evaluation  # validation text
    segment_steps: int  # steps per segment, K
    evaluations: int  # number of evaluations after step 0
    checkpoints: Checkpoints | None = None  # checkpoints of the run folder, if any
    log: Callable[[str], None] = logging.warning  # callback that takes one line for the user
    compile_limits: CompileLimits = CompileLimits()  # limits for programs with rewritten code

    def run(
        self, jobs: Sequence[Job], on_progress: Callable[[Progress], None] = lambda progress: None
    ) -> Generator[RunResult, None, None]:
        """Trains the jobs in order, one batch of lanes at a time, and yields one result per job.

        Training resumes from the newest checkpoint if that checkpoint belongs to these jobs.

        Args:
          jobs: Jobs to train.
          on_progress: Callback that takes the `Progress` of a batch after each segment.

        Raises:
          OutOfMemoryError: If one lane per device does not fit.
          CheckpointError: If a checkpoint cannot be written.
          Interrupted: If the user asked to stop.
        """
        keys = [job.key for job in jobs]
        hosts.require_same(keys, "jobs")
        call = self._resume(jobs, keys)
        known = call.finished
        trained = self._train(
            [job for job, key in zip(jobs, keys, strict=True) if key not in known],
            call,
            on_progress,
        )
        for key in keys:
            yield known[key] if key in known else next(trained)

    def _train(self, jobs, call: Call, on_progress) -> Iterator[RunResult]:
        """Yields one result per job. Halves the lanes if a batch does not fit in memory."""
        engine, initial = self, {}
        waiting = batches(jobs, engine.programs.width)
        while waiting:
            batch = waiting[0]
            try:
                results = engine._run_batch(batch, call, initial, on_progress)
            except jax.errors.JaxRuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                engine = engine._with_half_the_lanes()
                waiting = batches([job for some in waiting for job in some], engine.programs.width)
                continue
            waiting = waiting[1:]
            finished = {job.key: result for job, result in zip(batch, results, strict=True)}
            call = Call(self.program, call.finished | finished)
            engine._boundary(call)
            yield from results

    def _run_batch(self, jobs, call: Call, initial, on_progress) -> list[RunResult]:
        programs, count, steps = self.programs, len(jobs), jobs[0].steps
        code = jobs[0].candidate.code
        with_code(programs, self.task, code)  # raises if several devices share a candidate
        if code is not None:
            code.require(matrix_shapes(self.task.model))
        keys = tuple(job.key for job in jobs)
        padded = [*jobs, *[jobs[-1]] * (programs.width - count)]
        candidates = programs.place(stack_candidates([job.candidate for job in padded]))
        if call.keys == keys and call.program == self.program:
            batch = call.batch._replace(state=programs.place(call.batch.state))
        else:
            batch = self._begin(padded, candidates, initial)
        refusal = self._refusal(code, Call(self.program, call.finished, keys, batch))
        if refusal is not None:
            return [
                dead_result(
                    refusal, batch.telemetry[i], [(step, bpb[i]) for step, bpb in batch.curve]
                )
                for i in range(count)
            ]
        evaluated = evaluation_steps(steps, self.evaluations, self.segment_steps)
        while batch.step < steps and np.any(_failed_steps(batch) == ALIVE):
            before, batch = batch.step, self._advance(batch, padded, candidates, evaluated)
            telemetry, bpb = batch.telemetry[:count], batch.curve[-1][1][:count]
            loss = telemetry[:, before:, TELEMETRY.index("loss")]
            on_progress(Progress(count, batch.step, steps, loss, bpb, keys))
            if batch.step < steps:
                self._boundary(Call(self.program, call.finished, keys, batch))
        failed, failure = _failed_steps(batch), hosts.gather(batch.state.failure)
        return [
            run_result(
                batch.telemetry[i],
                int(failed[i]),
                int(failure[i]),
                [(step, bpb[i]) for step, bpb in batch.curve],
            )
            for i in range(count)
        ]

    def _begin(self, jobs: Sequence[Job], candidates, initial: dict) -> Batch:
        """Returns the batch at step 0."""
        place = self.programs.place
        seeds = place(np.asarray([job.seed for job in jobs], np.uint32))
        state = self.programs.init_population(candidates, seeds, np.int32(jobs[0].steps))
        # Validation bpb at step 0 depends only on the seed and the fold.
        starts = [(job.seed, job.fold) for job in jobs]
        if any(start not in initial for start in starts):
            initial |= dict(zip(starts, self._evaluate(state.params, jobs[0].fold), strict=True))
        curve = ((0, np.asarray([initial[start] for start in starts])),)
        return Batch(0, state, np.zeros((len(jobs), 0, len(TELEMETRY)), np.float32), curve)

    def _advance(self, batch: Batch, jobs, candidates, evaluated: set[int]) -> Batch:
        """Trains one segment, evaluates if an evaluation is due, and returns the new batch."""
        steps = jobs[0].steps
        code = jobs[0].candidate.code
        state, telemetry = with_code(self.programs, self.task, code).train_segment(
            batch.state,
            candidates,
            self.programs.place(self._segment(jobs, batch.step)),
            np.int32(batch.step),
            np.int32(steps),
        )
        end = min(batch.step + self.segment_steps, steps)
        curve = batch.curve
        if end in evaluated:
            curve = (*curve, (end, self._evaluate(state.params, jobs[0].fold)))
        telemetry = hosts.gather(telemetry)[:, : end - batch.step]
        return Batch(end, state, np.concatenate([batch.telemetry, telemetry], axis=1), curve)

    def _refusal(self, code: Code | None, call: Call) -> str | None:
        """Returns the reason why the program with `code` must not be compiled, or None.

        Args:
          code: Rewritten functions of the batch, if any.
          call: State of the engine, which is saved if the user asks to stop.

        Raises:
          Interrupted: If the user asked to stop.
          ConfigError: If the child process of `compile_check` fails before it compiles.
        """
        if code is None:
            return None
        mesh = self.programs.mesh
        # A child process can use only the devices of its host.
        devices = mesh.size if jax.process_count() == 1 else jax.local_device_count()
        lanes = self.programs.width // mesh.shape[POPULATION]
        program = TrainingProgram(self.task, code, devices, lanes, self.segment_steps)
        stopping = self.checkpoints.stopping if self.checkpoints else lambda: False

        def check() -> tuple[bool, str | None]:
            try:
                return False, compile_check.refusal(program, self.compile_limits, stopping)
            except compile_check.Stopped:
                return True, None

        stopped, refusal = hosts.from_first(check)
        if stopped:
            self._boundary(call)
        return refusal

    def _segment(self, jobs: Sequence[Job], start: int) -> Segment:
        """Returns the inputs of all lanes, with leading axes [width, K]."""
        capacity = self.task.batch_size
        fed = [feed(self.stream, job, start, self.segment_steps, capacity) for job in jobs]
        return jax.tree.map(lambda *lanes: np.stack(lanes), *fed)

    def _evaluate(self, params: Any, fold: int) -> np.ndarray:
        """Returns the validation bits per byte of every lane, float64[width]."""
        nats, num_bytes = hosts.gather(
            self.programs.evaluate_population(
                params, self.evaluation.folds[fold], self.evaluation.token_bytes
            )
        )
        return np.asarray(
            bits_per_byte(nats.astype(np.float64).sum(1), num_bytes.astype(np.float64).sum(1)),
            np.float64,
        )

    @property
    def width(self) -> int:
        """Number of jobs in a full batch, equal to the number of lanes over all devices."""
        return self.programs.width

    # Resuming

    @property
    def program(self) -> str:
        """Fingerprint that a checkpoint must have to be resumed."""
        facts = (self.task, self.segment_steps, self.programs.width, self.programs.mesh.shape)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def state_template(self, job: Job) -> TrainState:
        """Returns the shapes and dtypes of the state of all lanes.

        Args:
          job: Example of the jobs to be trained.
        """
        width = self.programs.width
        return jax.eval_shape(
            self.programs.init_population,
            stack_candidates([job.candidate] * width),
            np.zeros(width, np.uint32),
            np.int32(job.steps),
        )

    def checkpoint_bytes(self, job: Job) -> int:
        """Returns the size in bytes of the state of all lanes.

        Args:
          job: Example of the jobs to be trained.
        """
        return tree_bytes(self.state_template(job))

    def _resume(self, jobs: Sequence[Job], keys: list[str]) -> Call:
        """Returns the saved call of an earlier process for these jobs, or an empty call."""
        empty = Call(self.program, {})
        if self.checkpoints is None or not jobs:
            return empty

        def wanted(search: dict[str, Any]) -> bool:
            known = {*search["finished"], *search["batch"]}
            return search["program"] == self.program and not known.isdisjoint(keys)

        template = jax.tree.map(
            lambda leaf: np.empty(leaf.shape, leaf.dtype), self.state_template(jobs[0])
        )
        checkpoint = self.checkpoints.restore(wanted, template)
        if checkpoint is None:
            return empty
        call = from_checkpoint(checkpoint)
        step = f" and step {call.batch.step} of the next {len(call.keys)}" if call.batch else ""
        self.log(f"resuming inside a batch: {len(call.finished)} jobs finished{step}")
        return call

    def _boundary(self, call: Call) -> None:
        if self.checkpoints is not None:
            self.checkpoints.boundary(lambda: to_checkpoint(call))

    def _with_half_the_lanes(self) -> "LocalEngine":
        """Returns an engine with half the lanes, whose results may differ in the last bits."""
        mesh = self.programs.mesh
        lanes = self.programs.width // mesh.shape[POPULATION]
        if lanes == 1:
            raise OutOfMemoryError(
                f"config.train.batch_size={self.task.batch_size} does not fit in device memory; "
                "try a smaller batch, model or sequence_len"
            )
        if jax.process_count() > 1:  # other processes may have enough memory and keep their lanes
            raise OutOfMemoryError(
                f"config.lanes={lanes} does not fit in device memory; try {lanes // 2}"
            )
        self.log(
            f"{lanes} lanes do not fit in memory; continuing with {lanes // 2}. From here on "
            "results equal those of another run closely, but not bit for bit"
        )
        programs = make_programs(self.task, devices=mesh.size, lanes=lanes // 2)
        return self._replace(programs=programs)


def _failed_steps(batch: Batch) -> np.ndarray:
    return hosts.gather(batch.state.failed_step)
