"""Several trackers as one. A tracker that fails is switched off, and the search continues."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from nanoevolve_jax.tracking.tracker import Point, Tracker


class Trackers:
    """A `Tracker` that passes points to several trackers."""

    def __init__(
        self, makers: Mapping[str, Callable[[], Tracker]], log: Callable[[str], None]
    ) -> None:
        """Makes the trackers.

        Args:
          makers: Functions that make a tracker, by its name.
          log: Callback that takes one line for the user.
        """
        self._log = log
        self._working: dict[str, Tracker] = {}
        for name, make in makers.items():
            with self._guarded(name):
                self._working[name] = make()

    def scalars(self, run: str, points: Sequence[Point]) -> None:
        """See `Tracker`."""
        self._each(lambda tracker: tracker.scalars(run, points))

    def end(self, run: str) -> None:
        """See `Tracker`."""
        self._each(lambda tracker: tracker.end(run))

    def close(self) -> None:
        """See `Tracker`."""
        self._each(lambda tracker: tracker.close())
        self._working.clear()

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._working.items()):
            with self._guarded(name):
                act(tracker)

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        # The search must not depend on networks, disks or accounts.
        except Exception as error:
            self._working.pop(name, None)
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
            self._log(f"{name} is switched off, and the run continues without it ({reason[:200]})")
