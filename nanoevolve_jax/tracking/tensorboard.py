"""Event files for TensorBoard, one folder per run inside the run folder."""

import time
from collections.abc import Sequence
from pathlib import Path

from nanoevolve_jax.tracking.tracker import Point

FOLDER = "tensorboard"


class TensorBoard:
    """A `Tracker` that replaces the files in `tensorboard/<run>/`.

    Files are written in this thread. On a full disk, the library's background writer would continue
    silently and finally wait forever.
    """

    def __init__(self, folder: Path):
        """Imports the library, and writes nothing yet.

        Args:
          folder: Run folder of the search.
        """
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        self._folder = folder / FOLDER
        self._writer, self._event, self._summary = EventsWriter, Event, Summary
        self._open: dict[str, EventsWriter] = {}

    def scalars(self, run: str, points: Sequence[Point]) -> None:
        """Writes points to the disk before it returns; see `Tracker`."""
        if run not in self._open:
            self._open[run] = self._begin(self._folder / run)
        for step, values in points:
            scalars = [self._summary.Value(tag=k, simple_value=v) for k, v in values.items()]
            summary = self._summary(value=scalars)
            event = self._event(wall_time=time.time(), step=step, summary=summary)
            self._open[run].write_event(event)
        self._open[run].flush()

    def end(self, run: str) -> None:
        """See `Tracker`."""
        self._open.pop(run).close()

    def close(self) -> None:
        """See `Tracker`."""
        for run in list(self._open):
            self.end(run)

    def _begin(self, folder: Path):
        for path in folder.glob("events.out.tfevents.*"):
            path.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        return self._writer(str(folder / "events"))
