"""The local engine: trains any list of jobs on this process's devices.

The host loops over batches of lanes and over segments, which is where progress, early stops
and evaluations live. A batch that is not full is padded with copies of its last job: a smaller
program would be a second one to compile, and would round differently.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from data.batches import batches
from model.loss import bits_per_byte
from nanoevolve_jax.execution.population import Programs, stack_candidates
from nanoevolve_jax.execution.train import ALIVE, FAILURES, TELEMETRY, Candidate, Task


class Job(NamedTuple):
    """One training run to make."""

    candidate: Candidate
    seed: int  # of the initial weights and of the batches


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
    """The fixed validation set in batches."""

    rows: np.ndarray  # int32[N, B, T + 1]
    token_bytes: np.ndarray  # int32[vocab]


class Progress(NamedTuple):
    """A moment of a batch, for whoever displays it."""

    jobs: int  # real ones in this batch
    step: int  # steps done
    loss: np.ndarray  # float32[jobs], of the last step
    val_bpb: np.ndarray  # float64[jobs], the latest


def validation_set(rows: np.ndarray, count: int, batch_size: int, token_bytes: Any) -> Evaluation:
    """The first `count` validation rows in whole batches of at most `batch_size`."""
    count = min(count, len(rows))
    size = min(batch_size, count)
    used = np.asarray(rows[: count // size * size], np.int32)
    return Evaluation(used.reshape(-1, size, rows.shape[1]), np.asarray(token_bytes, np.int32))


def evaluation_steps(total_steps: int, evaluations: int, segment_steps: int) -> set[int]:
    """Ends of segments at which to evaluate: evenly spaced, the last step always."""
    ends = [*range(segment_steps, total_steps, segment_steps), total_steps]
    wanted = [total_steps * (i + 1) / evaluations for i in range(evaluations)]
    return {min(ends, key=lambda end: (abs(end - step), end)) for step in wanted} | {total_steps}


class LocalEngine(NamedTuple):
    """Everything a job needs but the job."""

    task: Task
    programs: Programs
    train_rows: np.ndarray  # [N, T + 1]
    evaluation: Evaluation
    total_steps: int
    segment_steps: int
    evaluations: int

    def run(
        self, jobs: Sequence[Job], on_progress: Callable[[Progress], None] = lambda progress: None
    ) -> Iterator[RunResult]:
        """Trains the jobs in order, a batch of lanes at a time; yields one result a job."""
        width = self.programs.width
        initial: dict[int, float] = {}  # validation bpb at step 0 depends on the seed alone
        for first in range(0, len(jobs), width):
            yield from self._run_batch(jobs[first : first + width], initial, on_progress)

    def _run_batch(self, jobs, initial, on_progress) -> list[RunResult]:
        programs, count = self.programs, len(jobs)
        padded = [*jobs, *[jobs[-1]] * (programs.width - count)]
        candidates = programs.place(stack_candidates([job.candidate for job in padded]))
        seeds = programs.place(np.asarray([job.seed for job in padded], np.uint32))
        horizon = np.int32(self.total_steps)
        state = programs.init_population(candidates, seeds, horizon)
        if any(job.seed not in initial for job in padded):
            bpb = self._evaluate(state.params)
            initial |= {job.seed: value for job, value in zip(padded, bpb, strict=True)}
        curve = [(0, np.asarray([initial[job.seed] for job in padded]))]
        telemetry = []
        checkpoints = evaluation_steps(self.total_steps, self.evaluations, self.segment_steps)
        for start in range(0, self.total_steps, self.segment_steps):
            rows = programs.place(self._rows(padded, start))
            state, segment = programs.train_segment(
                state, candidates, rows, np.int32(start), horizon
            )
            end = min(start + self.segment_steps, self.total_steps)
            telemetry.append(np.asarray(segment)[:count, : end - start])
            failed = np.asarray(state.failed_step)[:count]
            if end in checkpoints:
                curve.append((end, self._evaluate(state.params)))
            loss = telemetry[-1][:, -1, TELEMETRY.index("loss")]
            on_progress(Progress(count, end, loss, curve[-1][1][:count]))
            if np.all(failed != ALIVE):
                break
        failure = np.asarray(state.failure)[:count]
        history = np.concatenate(telemetry, axis=1)  # [count, steps, 14]
        return [
            _result(history[i], int(failed[i]), int(failure[i]), [(s, v[i]) for s, v in curve])
            for i in range(count)
        ]

    def _rows(self, jobs: Sequence[Job], start: int) -> np.ndarray:
        """int32[width, K, B, T + 1]; steps beyond the horizon are zeros that nothing reads."""
        stop = min(start + self.segment_steps, self.total_steps)
        by_seed = {
            seed: batches(self.train_rows, seed, start, stop, self.task.batch_size)
            for seed in {job.seed for job in jobs}
        }
        rows = np.stack([by_seed[job.seed] for job in jobs])
        missing = self.segment_steps - (stop - start)
        return np.pad(rows, ((0, 0), (0, missing), (0, 0), (0, 0))) if missing else rows

    def _evaluate(self, params: Any) -> np.ndarray:
        """Validation bits per byte of every lane; float64[width]."""
        nats, num_bytes = jax.device_get(
            self.programs.evaluate_population(
                params, self.evaluation.rows, self.evaluation.token_bytes
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
