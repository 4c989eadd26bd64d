"""What a call of an engine keeps at a segment boundary, and how the next process goes on."""

from typing import Any, NamedTuple

import numpy as np

from nanoevolve_jax.execution.checkpoint import Checkpoint
from nanoevolve_jax.execution.results import RunResult
from nanoevolve_jax.execution.train import TrainState

_ARRAYS = ("telemetry", "curve")


class Batch(NamedTuple):
    """A batch of lanes at a segment boundary."""

    step: int  # steps done
    state: TrainState  # of all lanes
    telemetry: np.ndarray  # float32[jobs, step, 14]
    curve: tuple[tuple[int, np.ndarray], ...]  # (step, validation bpb float64[width])


class Call(NamedTuple):
    """Where a call of an engine stands: jobs by their keys."""

    program: str  # of the engine; another one's state does not fit
    finished: dict[str, RunResult]
    keys: tuple[str, ...] = ()  # of the batch in progress
    batch: Batch | None = None


def to_checkpoint(call: Call) -> Checkpoint:
    """The call as JSON and arrays."""
    search: dict[str, Any] = {"program": call.program, "finished": {}, "batch": list(call.keys)}
    records = {}
    for key, result in call.finished.items():
        document = result._asdict()
        records |= {f"{key}.{name}": document.pop(name) for name in _ARRAYS}
        search["finished"][key] = document
    if call.batch is None:
        return Checkpoint(search, records, None)
    search["step"] = call.batch.step
    records["batch.telemetry"] = call.batch.telemetry
    records["batch.curve_steps"] = np.array([step for step, _ in call.batch.curve], np.int64)
    records["batch.curve_bpb"] = np.stack([bpb for _, bpb in call.batch.curve])
    return Checkpoint(search, records, call.batch.state)


def from_checkpoint(checkpoint: Checkpoint) -> Call:
    """The call that `to_checkpoint` was given; its arrays are on the host."""
    search, records, population = checkpoint
    finished = {
        key: RunResult(**document, **{name: records[f"{key}.{name}"] for name in _ARRAYS})
        for key, document in search["finished"].items()
    }
    call = Call(search["program"], finished)
    if population is None:
        return call
    steps, bpb = records["batch.curve_steps"], records["batch.curve_bpb"]
    curve = tuple((int(step), values) for step, values in zip(steps, bpb, strict=True))
    batch = Batch(search["step"], population, records["batch.telemetry"], curve)
    return call._replace(keys=tuple(search["batch"]), batch=batch)
