"""What a tracker is: something that keeps curves of numbers, a run at a time."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Point(NamedTuple):
    """Some numbers at one step of a run."""

    step: int
    values: dict[str, float]  # finite ones, by name


class Tracker(Protocol):
    """Keeps the points that it is told, each of them once.

    A process tells everything from the beginning of the search on, whatever an earlier process on
    the same folder has told before it was stopped or killed.
    """

    def scalars(self, run: str, points: Sequence[Point]) -> None:
        """Further points of a run, in the order of their steps."""
        ...

    def end(self, run: str) -> None:
        """Nothing more will be told of this run."""
        ...

    def close(self) -> None:
        """Nothing more will be told at all."""
        ...
