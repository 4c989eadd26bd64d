"""What a stage asks of the engine, as counts: the plan of a campaign and the progress bars read it.

A stage gives its calls, in order. A call ends before the next one begins, for the next one depends
on what it brought; the runs of one call are all known at its start, so that machines share them.
"""

from collections.abc import Iterable
from typing import NamedTuple

MAIN = "main"


class Group(NamedTuple):
    """Equal runs."""

    runs: int
    steps: int  # of each
    program: str = MAIN  # the engine that makes them, as in `runs.Run`


class Call(NamedTuple):
    """Runs that are asked for at once."""

    stage: str  # as in `runs.jsonl`
    groups: tuple[Group, ...]


def call(stage: str, runs: int, steps: int, program: str = MAIN) -> Call:
    """A call of equal runs."""
    return Call(stage, (Group(runs, steps, program),))


def total_runs(calls: Iterable[Call]) -> int:
    """Runs of all calls."""
    return sum(group.runs for one in calls for group in one.groups)


def total_steps(calls: Iterable[Call]) -> int:
    """Candidate-steps of all calls."""
    return sum(group.runs * group.steps for one in calls for group in one.groups)
