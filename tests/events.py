"""Event files read back with TensorBoard's own reader."""

from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator


def read_events(folder):
    """Returns {name: [(step, value), ...]} with every point of a run's event files."""
    accumulator = EventAccumulator(str(folder), size_guidance={SCALARS: 0})
    accumulator.Reload()
    names = accumulator.Tags()["scalars"]
    return {name: [(e.step, e.value) for e in accumulator.Scalars(name)] for name in names}


def runs_of(folder):
    """Returns the names of the runs under a folder of event files."""
    return {str(path.parent.relative_to(folder)) for path in folder.rglob("events.out.tfevents.*")}
