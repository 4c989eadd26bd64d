"""The local engine: trains any list of jobs on this process's devices.

The host loops over batches of lanes and over segments, which is where progress, early stops
and evaluations live. A batch that is not full is padded with copies of its last job: a smaller
program would be a second one to compile, and would round differently.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from model.loss import bits_per_byte
from nanoevolve_jax.execution.job import Job
from nanoevolve_jax.execution.population import Programs, stack_candidates
from nanoevolve_jax.execution.stream import Stream, feed
from nanoevolve_jax.execution.train import ALIVE, FAILURES, TELEMETRY, Segment, Task


class RunResult(NamedTuple):
    """What a training run gave."""

    val_bpb: float  # at the end; NaN if the run failed
    train_loss: float  # mean of the last tenth, nats a token; NaN if the run failed
    failure: str | None  # reason, or None
    failed_step: int | None
    steps: int  # completed with finite numbers
    telemetry: np.ndarray  # float32[steps, 14], columns TELEMETRY
    curve: np.ndarray  # float64[evaluations + 1, 2]: step, validation bpb


class Evaluation(NamedTuple):
    """The fixed validation sets in batches, one a fold, all of one shape."""

    folds: tuple[np.ndarray, ...]  # each int32[N, B, T + 1]
    token_bytes: np.ndarray  # int32[vocab]


class Progress(NamedTuple):
    """A moment of a batch, for whoever displays it."""

    jobs: int  # real ones in this batch
    step: int  # steps done
    steps: int  # the batch's horizon
    loss: np.ndarray  # float32[jobs], of the last step
    val_bpb: np.ndarray  # float64[jobs], the latest


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


class LocalEngine(NamedTuple):
    """Everything a job needs but the job."""

    task: Task
    programs: Programs
    stream: Stream
    evaluation: Evaluation
    segment_steps: int
    evaluations: int

    def run(
        self, jobs: Sequence[Job], on_progress: Callable[[Progress], None] = lambda progress: None
    ) -> Iterator[RunResult]:
        """Trains the jobs in order, a batch of lanes at a time; yields one result a job.

        Lanes share a horizon and a validation fold, so a batch ends where either changes.
        """
        initial: dict[tuple[int, int], float] = {}
        for _, alike in itertools.groupby(jobs, key=lambda job: (job.steps, job.fold)):
            group = list(alike)
            for first in range(0, len(group), self.programs.width):
                batch = group[first : first + self.programs.width]
                yield from self._run_batch(batch, initial, on_progress)

    def _run_batch(self, jobs, initial, on_progress) -> list[RunResult]:
        programs, count, steps = self.programs, len(jobs), jobs[0].steps
        padded = [*jobs, *[jobs[-1]] * (programs.width - count)]
        candidates = programs.place(stack_candidates([job.candidate for job in padded]))
        seeds = programs.place(np.asarray([job.seed for job in padded], np.uint32))
        state = programs.init_population(candidates, seeds, np.int32(steps))
        # Validation bpb at step 0 depends on the seed and the fold alone.
        starts = [(job.seed, job.fold) for job in padded]
        if any(start not in initial for start in starts):
            bpb = self._evaluate(state.params, jobs[0].fold)
            initial |= dict(zip(starts, bpb, strict=True))
        curve = [(0, np.asarray([initial[start] for start in starts]))]
        telemetry = []
        checkpoints = evaluation_steps(steps, self.evaluations, self.segment_steps)
        for start in range(0, steps, self.segment_steps):
            state, segment = programs.train_segment(
                state,
                candidates,
                programs.place(self._segment(padded, start)),
                np.int32(start),
                np.int32(steps),
            )
            end = min(start + self.segment_steps, steps)
            telemetry.append(np.asarray(segment)[:count, : end - start])
            failed = np.asarray(state.failed_step)[:count]
            if end in checkpoints:
                curve.append((end, self._evaluate(state.params, jobs[0].fold)))
            loss = telemetry[-1][:, -1, TELEMETRY.index("loss")]
            on_progress(Progress(count, end, steps, loss, curve[-1][1][:count]))
            if np.all(failed != ALIVE):
                break
        failure = np.asarray(state.failure)[:count]
        history = np.concatenate(telemetry, axis=1)  # [count, steps, 14]
        return [
            _result(history[i], int(failed[i]), int(failure[i]), [(s, v[i]) for s, v in curve])
            for i in range(count)
        ]

    def _segment(self, jobs: Sequence[Job], start: int) -> Segment:
        """What every lane is fed, axes [width, K, ...]."""
        capacity = self.task.batch_size
        fed = [feed(self.stream, job, start, self.segment_steps, capacity) for job in jobs]
        return jax.tree.map(lambda *lanes: np.stack(lanes), *fed)

    def _evaluate(self, params: Any, fold: int) -> np.ndarray:
        """Validation bits per byte of every lane; float64[width]."""
        nats, num_bytes = jax.device_get(
            self.programs.evaluate_population(
                params, self.evaluation.folds[fold], self.evaluation.token_bytes
            )
        )
        return np.asarray(
            bits_per_byte(nats.astype(np.float64).sum(1), num_bytes.astype(np.float64).sum(1)),
            np.float64,
        )


def _result(telemetry, failed_step, failure, curve) -> RunResult:
    if failed_step == ALIVE and not np.isfinite(curve[-1][1]):
        reason, failed_step = "non-finite validation", len(telemetry)
    else:
        reason = None if failed_step == ALIVE else FAILURES[failure]
    steps = len(telemetry) if reason is None else failed_step
    last = telemetry[steps - max(1, steps // 10) : steps, TELEMETRY.index("loss")]
    return RunResult(
        val_bpb=float(curve[-1][1]) if reason is None else float("nan"),
        train_loss=float(np.mean(last, dtype=np.float64)) if reason is None else float("nan"),
        failure=reason,
        failed_step=None if reason is None else failed_step,
        steps=steps,
        telemetry=telemetry[:steps],
        curve=np.asarray([point for point in curve if point[0] <= steps], np.float64),
    )
