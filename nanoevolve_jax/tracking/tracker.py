"""The protocol of trackers, which store curves of numbers by run."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Point(NamedTuple):
    """Numbers at one step of a run."""

    step: int
    values: dict[str, float]  # finite numbers by name


class Tracker(Protocol):
    """Stores points, each of them once.

    A process passes all points from the beginning of the search on, even if an earlier process on
    the same folder has passed some of them before it was stopped or killed.
    """

    def scalars(self, run: str, points: Sequence[Point]) -> None:
        """Stores further points of a run, in the order of their steps."""
        ...

    def end(self, run: str) -> None:
        """Ends a run, which gets no further points."""
        ...

    def close(self) -> None:
        """Ends all runs."""
        ...
