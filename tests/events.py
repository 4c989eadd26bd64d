"""Event files read back by TensorBoard itself."""

from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator


def read_events(folder):
    """{name: [(step, value), ...]} of a run's event files, every point of them."""
    accumulator = EventAccumulator(str(folder), size_guidance={SCALARS: 0})
    accumulator.Reload()
    names = accumulator.Tags()["scalars"]
    return {name: [(e.step, e.value) for e in accumulator.Scalars(name)] for name in names}


def runs_of(folder):
    """The names of the runs under a folder of event files."""
    return {str(path.parent.relative_to(folder)) for path in folder.rglob("events.out.tfevents.*")}
