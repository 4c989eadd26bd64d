"""Numbers of training runs for plans and progress bars, partly from dry runs.

A stage requests its runs in calls. A call ends before the next one begins, because the next one
depends on its results. All runs of a call are known at its start, so machines can share them.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from nanoevolve_jax.evidence.runs import MAIN, Run
from nanoevolve_jax.execution.job import Job
from nanoevolve_jax.execution.settings import make_recipe


class Group(NamedTuple):
    """A group of runs of equal length."""

    runs: int  # number of runs
    steps: int  # horizon of each run
    program: str = MAIN  # program that trains them, as in `runs.Run`


class Call(NamedTuple):
    """Runs that are requested together."""

    stage: str  # name of the stage, as in `runs.jsonl`
    groups: tuple[Group, ...]


def call(stage: str, runs: int, steps: int, program: str = MAIN) -> Call:
    """Returns a call for runs of equal length.

    Args:
      stage: Name of the stage, as in `runs.jsonl`.
      runs: Number of runs.
      steps: Horizon of each run, in steps.
      program: Program that trains the runs.
    """
    return Call(stage, (Group(runs, steps, program),))


def total_runs(calls: Iterable[Call]) -> int:
    """Returns the number of runs of all calls."""
    return sum(group.runs for call in calls for group in call.groups)


def total_steps(calls: Iterable[Call]) -> int:
    """Returns the number of candidate-steps of all calls."""
    return sum(group.runs * group.steps for call in calls for group in call.groups)


class DryRuns:
    """A replacement for `runs.Runs` that counts runs and returns invented results.

    The results lead a stage along its longest usual path. The best learning rate is that of the
    config, so ranges are not extended. A policy with a gate has a small gain over one without,
    which is too small for a win at the first look. The gate is almost a function of the step, so
    the perturbation panel is needed.

    Attributes:
      calls: Calls so far. A run that was requested before is not counted again.
      width: Number of jobs in a full batch.
    """

    def __init__(self, config: ConfigDict, width: int = 1):
        self.calls: list[Call] = []
        self.width = width
        self._config = config
        self._known: set[tuple] = set()

    def engine(self, program: str = MAIN) -> "DryRuns":
        """Returns an object that has the attribute `width` of an engine."""
        del program
        return self

    def run(self, jobs: Sequence[Job], stage: str, program: str = MAIN) -> list[Run]:
        """Counts the jobs that are new.

        Args:
          jobs: Jobs to count.
          stage: Stage of the runs.
          program: Program that would train the jobs.

        Returns:
          Invented runs of all jobs, in order.
        """
        fresh = [job for job in jobs if self._is_new(job, program)]
        groups = [
            Group(len(list(same)), steps, program)
            for steps, same in itertools.groupby(fresh, key=lambda job: job.steps)
        ]
        if groups:
            self.calls.append(Call(stage, tuple(groups)))
        return [self._run(job, stage, program) for job in jobs]

    def telemetry(self, run: Run) -> dict[str, np.ndarray]:
        """Returns a gate that increases with the step and depends slightly on the seed."""
        steps, seed = run.job["steps"], run.job["seed"]
        return {"gate": np.linspace(0.2, 0.8 + 1e-4 * (seed % 64), steps, dtype=np.float32)}

    def _is_new(self, job: Job, program: str) -> bool:
        gate = None if job.gate is None else job.gate.tobytes()
        key = (program, *job._replace(gate=None), gate)
        new = key not in self._known
        self._known.add(key)
        return new

    def _run(self, job: Job, stage: str, program: str) -> Run:
        usual = make_recipe(self._config, job.steps).matrix_lr
        gain = (0.4 + (-1) ** job.seed) * bool(job.candidate.spec.control.enabled)
        octaves = np.log2(job.candidate.recipe.matrix_lr / usual)
        shared, own = np.random.default_rng(job.seed).normal(0.0, 0.01, 2)
        noise = shared + own * job.candidate.spec.update_multiplier
        bpb = float(2.0 + 0.1 * octaves**2 + noise - 1e-4 * gain)
        return Run(
            key="",
            stage=stage,
            program=program,
            job={"seed": job.seed, "steps": job.steps},
            val_bpb=bpb,
            train_loss=bpb,
            failure=None,
            failed_step=None,
            steps=job.steps,
            tokens=0,
            curve=[[0, 8.0], [job.steps, bpb]],
            instability=0.0,
        )
