"""The local engine: trains any list of jobs on this process's devices.

The host loops over batches of lanes and over segments, which is where progress, early stops
evaluations and checkpoints live. A batch that is not full is padded with copies of its last job: a
smaller program would be a second one to compile, and would round differently.
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
    """Machines that cannot train; the message says why."""


class Evaluation(NamedTuple):
    """The fixed validation sets in batches, one a fold, all of one shape."""

    folds: tuple[np.ndarray, ...]  # each int32[N, B, T + 1]
    token_bytes: np.ndarray  # int32[vocab]


class Progress(NamedTuple):
    """A moment of a batch, for whoever displays it."""

    jobs: int  # real ones in this batch
    step: int  # steps done
    steps: int  # the batch's horizon
    loss: np.ndarray  # float32[jobs, K], of the steps since the report before
    val_bpb: np.ndarray  # float64[jobs], the latest
    names: tuple[str, ...]  # of the jobs: their keys, or what whoever asked for them calls them
    batch: int = 0  # tells batches that are under way at once apart


def named(
    on_progress: Callable[[Progress], None], names: Mapping[str, str]
) -> Callable[[Progress], None]:
    """Hears of jobs by their keys and passes it on under these names."""

    def renamed(progress: Progress) -> None:
        on_progress(progress._replace(names=tuple(names.get(k, k) for k in progress.names)))

    return renamed


def validation_sets(
    folds: Sequence[np.ndarray], count: int, batch_size: int, token_bytes: Any
) -> Evaluation:
    """The first rows of every fold in whole batches: `count`, or as many as the smallest has."""
    count = min(count, *(len(rows) for rows in folds))
    size = min(batch_size, count)

    def batched(rows):
        return np.asarray(rows[: count // size * size], np.int32).reshape(-1, size, rows.shape[1])

    return Evaluation(tuple(map(batched, folds)), np.asarray(token_bytes, np.int32))


def evaluation_steps(total_steps: int, evaluations: int, segment_steps: int) -> set[int]:
    """Ends of segments at which to evaluate: evenly spaced, the last step always."""
    ends = [*range(segment_steps, total_steps, segment_steps), total_steps]
    wanted = [total_steps * (i + 1) / evaluations for i in range(evaluations)]
    return {min(ends, key=lambda end: (abs(end - step), end)) for step in wanted} | {total_steps}


def batches(jobs: Sequence[Job], width: int) -> list[list[Job]]:
    """The jobs in batches of at most `width`, in order.

    Lanes share a horizon, a validation fold and code, so a batch ends where one of them changes.
    """
    groups = itertools.groupby(jobs, key=lambda job: (job.steps, job.fold, job.candidate.code))
    alike = [list(group) for _, group in groups]
    return [group[i : i + width] for group in alike for i in range(0, len(group), width)]


class Engine(Protocol):
    """Trains jobs, in this process or elsewhere."""

    task: Task
    width: int  # jobs of a full batch

    def run(
        self, jobs: Sequence[Job], on_progress: Callable[[Progress], None] = ...
    ) -> Generator[RunResult, None, None]:
        """Yields one result per job, in order.

        The caller closes the generator (`contextlib.closing`), also when it leaves its loop by an
        exception: workers may still train for it.
        """
        ...

    def checkpoint_bytes(self, job: Job) -> int:
        """Bytes of the largest checkpoint that such jobs leave in this process's run folder."""
        ...


class LocalEngine(NamedTuple):
    """Trains jobs on the devices of this process; an `Engine`."""

    task: Task
    programs: Programs
    stream: Stream
    evaluation: Evaluation
    segment_steps: int
    evaluations: int
    checkpoints: Checkpoints | None = None
    log: Callable[[str], None] = logging.warning
    compile_limits: CompileLimits = CompileLimits()  # of programs with rewritten code

    def run(
        self, jobs: Sequence[Job], on_progress: Callable[[Progress], None] = lambda progress: None
    ) -> Generator[RunResult, None, None]:
        """Trains the jobs in order, a batch of lanes at a time; yields one result a job.

        Goes on from the newest checkpoint, if that is of these jobs.

        Raises:
          OutOfMemoryError: if not even one lane a device fits.
          CheckpointError, Interrupted: see `Checkpoints.boundary`.
        """
        keys = [job.key for job in jobs]
        hosts.require_same(keys, "what is to be trained")
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
        """One result a job; a batch that memory cannot hold is run again in half the lanes."""
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
        with_code(programs, self.task, code)  # refuses code for devices that share a candidate
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
        """The batch at step 0."""
        place = self.programs.place
        seeds = place(np.asarray([job.seed for job in jobs], np.uint32))
        state = self.programs.init_population(candidates, seeds, np.int32(jobs[0].steps))
        # Validation bpb at step 0 depends on the seed and the fold alone.
        starts = [(job.seed, job.fold) for job in jobs]
        if any(start not in initial for start in starts):
            initial |= dict(zip(starts, self._evaluate(state.params, jobs[0].fold), strict=True))
        curve = ((0, np.asarray([initial[start] for start in starts])),)
        return Batch(0, state, np.zeros((len(jobs), 0, len(TELEMETRY)), np.float32), curve)

    def _advance(self, batch: Batch, jobs, candidates, evaluated: set[int]) -> Batch:
        """The batch a segment later."""
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
        """Returns why the training program of code must not be compiled, or None.

        Args:
          code: Rewritten functions of the batch, if any.
          call: Where the engine stands, for a checkpoint if the user asks to stop meanwhile.

        Raises:
          Interrupted: if the user asked to stop.
          ConfigError: see `compile_check.refusal`.
        """
        if code is None:
            return None
        mesh = self.programs.mesh
        # A child process has the devices of one host.
        devices = mesh.size if jax.process_count() == 1 else jax.local_device_count()
        lanes = self.programs.width // mesh.shape[POPULATION]
        task = self.task._replace(code=code)
        program = TrainingProgram(task, devices, lanes, self.segment_steps)
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
        """What every lane is fed, axes [width, K, ...]."""
        capacity = self.task.batch_size
        fed = [feed(self.stream, job, start, self.segment_steps, capacity) for job in jobs]
        return jax.tree.map(lambda *lanes: np.stack(lanes), *fed)

    def _evaluate(self, params: Any, fold: int) -> np.ndarray:
        """Validation bits per byte of every lane; float64[width]."""
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
        """Jobs of a full batch: lanes of all devices."""
        return self.programs.width

    # Going on

    @property
    def program(self) -> str:
        """What state of another process must have been made with to be gone on with."""
        facts = (self.task, self.segment_steps, self.programs.width, self.programs.mesh.shape)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def state_template(self, job: Job) -> TrainState:
        """The shapes and dtypes of the state of all lanes."""
        width = self.programs.width
        return jax.eval_shape(
            self.programs.init_population,
            stack_candidates([job.candidate] * width),
            np.zeros(width, np.uint32),
            np.int32(job.steps),
        )

    def checkpoint_bytes(self, job: Job) -> int:
        """Bytes of the state of all lanes."""
        return tree_bytes(self.state_template(job))

    def _resume(self, jobs: Sequence[Job], keys: list[str]) -> Call:
        """Where an earlier process left these jobs; nowhere, if it did not begin them."""
        nothing = Call(self.program, {})
        if self.checkpoints is None or not jobs:
            return nothing

        def wanted(search: dict[str, Any]) -> bool:
            theirs = {*search["finished"], *search["batch"]}
            return search["program"] == self.program and not theirs.isdisjoint(keys)

        template = jax.tree.map(
            lambda leaf: np.empty(leaf.shape, leaf.dtype), self.state_template(jobs[0])
        )
        checkpoint = self.checkpoints.restore(wanted, template)
        if checkpoint is None:
            return nothing
        call = from_checkpoint(checkpoint)
        step = f" and step {call.batch.step} of the next {len(call.keys)}" if call.batch else ""
        self.log(f"resuming inside a batch: {len(call.finished)} jobs finished{step}")
        return call

    def _boundary(self, call: Call) -> None:
        if self.checkpoints is not None:
            self.checkpoints.boundary(lambda: to_checkpoint(call))

    def _with_half_the_lanes(self) -> "LocalEngine":
        """The engine for half the lanes; what it gives differs in the last bits."""
        mesh = self.programs.mesh
        lanes = self.programs.width // mesh.shape[POPULATION]
        if lanes == 1:
            raise OutOfMemoryError(
                f"config.train.batch_size is {self.task.batch_size}, and one lane of it does not "
                "fit into the device's memory; allowed: a smaller batch, model or sequence_len"
            )
        if jax.process_count() > 1:  # the others may have had room, and would go on as they were
            raise OutOfMemoryError(
                f"config.lanes is {lanes}, and so many do not fit into the device's memory; "
                f"allowed: fewer, such as {lanes // 2}"
            )
        self.log(
            f"{lanes} lanes do not fit into memory: going on with {lanes // 2}; from here on "
            "results equal those of another run only closely, not bit for bit"
        )
        programs = make_programs(self.task, devices=mesh.size, lanes=lanes // 2)
        return self._replace(programs=programs)


def _failed_steps(batch: Batch) -> np.ndarray:
    return hosts.gather(batch.state.failed_step)
