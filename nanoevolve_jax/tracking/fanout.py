"""Several trackers as one; one that fails is switched off, for a curve is not worth a search."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from nanoevolve_jax.tracking.tracker import Point, Tracker


class Trackers:
    """A `Tracker` that passes everything on to those that work."""

    def __init__(
        self, makers: Mapping[str, Callable[[], Tracker]], log: Callable[[str], None]
    ) -> None:
        """Makes the trackers.

        Args:
          makers: of trackers, by what to call them.
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
        # Networks, disks, accounts: whatever it is, the search does not depend on it.
        except Exception as error:
            self._working.pop(name, None)
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
            self._log(f"{name} is switched off, the run goes on without it ({reason[:200]})")
