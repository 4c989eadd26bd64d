"""Verified checkpoints of the state of an engine.

Orbax writes a checkpoint in the background and publishes it by renaming a folder, so the previous
checkpoint survives if the process is killed. Orbax does not detect flipped bits, so each checkpoint
also holds a SHA-256 digest of its arrays. A damaged checkpoint is deleted, and the previous one is
used.
"""

import hashlib
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers
from orbax.checkpoint.utils import TMP_DIR_SUFFIX

from nanoevolve_jax.errors import UserError
from nanoevolve_jax.execution import hosts
from nanoevolve_jax.execution.plain_files import FileError, subfolder
from nanoevolve_jax.execution.results import RunResult
from nanoevolve_jax.execution.train import TrainState

FOLDER = "checkpoints"
FORMAT = 1
_KEPT = 2  # the newest checkpoint and a fallback


class CheckpointError(UserError):
    """Error about a checkpoint that cannot be written."""


class Interrupted(KeyboardInterrupt):
    """Exception raised when the user stops a command, after its work has been saved."""


class Checkpoint(NamedTuple):
    """Content of a checkpoint: the state of an engine's call at a segment boundary."""

    search: dict[str, Any]  # program, finished jobs and current batch, as JSON
    records: dict[str, np.ndarray]  # telemetry and validation curves by name
    population: Any  # TrainState of all lanes, or None between two batches


def _sha256(tree: Any) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        leaf = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()


def _pack(records: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns records as the bytes of one .npz file, because Orbax rejects empty arrays."""
    file = io.BytesIO()
    np.savez_compressed(file, **records)
    return {"npz": np.frombuffer(file.getvalue(), np.uint8)}


def _unpack(packed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(packed["npz"].tobytes())) as records:
        return dict(records)


class Checkpoints:
    """Checkpoints of one run folder.

    If several processes train together, only the first one reads and writes checkpoints.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seconds: int,
        stopping: Callable[[], bool] = lambda: False,
        log: Callable[[str], None] = lambda line: None,
    ):
        """Opens the folder and removes unfinished checkpoints of killed processes.

        Args:
          folder: Run folder. The checkpoints are in its subfolder `checkpoints`.
          seconds: Minimum time between checkpoints in seconds. 0 saves at every segment boundary.
          stopping: Function that returns whether the user has asked to stop.
          log: Callback that takes one line for the user.

        Raises:
          FileError: If a link has the name of the folder of checkpoints.
        """
        self._folder = (folder / FOLDER).absolute()
        self._seconds = seconds
        self.stopping = stopping
        self.log = log
        if not hosts.is_first():
            return
        try:
            self._manager = self._open()
        except FileError:  # the folder is a link, whose target must not be deleted
            raise
        except Exception as error:  # Orbax does not define an exception class for damaged folders
            log(f"{self._folder} cannot be read ({_line(error)}); starting without checkpoints")
            shutil.rmtree(self._folder, ignore_errors=True)
            self._manager = self._open()
        self._next = max(self._manager.all_steps(), default=-1) + 1

    def _open(self) -> ocp.CheckpointManager:
        subfolder(self._folder.parent, FOLDER)
        # Orbax removes unfinished checkpoints in a thread, which it joins only when it saves.
        for unfinished in self._folder.glob(f"*{TMP_DIR_SUFFIX}*"):
            shutil.rmtree(unfinished)
        options = ocp.CheckpointManagerOptions(
            create=False,  # required by Orbax when not all processes are active
            multiprocessing_options=ocp.options.MultiprocessingOptions(active_processes={0}),
            save_decision_policy=checkpoint_managers.ContinuousCheckpointingPolicy(
                minimum_interval_secs=self._seconds
            ),
            preservation_policy=checkpoint_managers.LatestN(_KEPT),
        )
        return ocp.CheckpointManager(self._folder, options=options)

    def boundary(self, make: Callable[[], Checkpoint]) -> None:
        """Saves a checkpoint if one is due or the user asked to stop.

        Call this method after every segment.

        Args:
          make: Function that returns the checkpoint. It is called only if the checkpoint is saved.

        Raises:
          CheckpointError: If the checkpoint cannot be written.
          Interrupted: If the user asked to stop. The checkpoint has then been written.
        """
        first = hosts.is_first()
        try:
            due = first and self._manager.should_save(self._next)
            stopping, due = hosts.votes([self.stopping(), due]).any(axis=0)
            if stopping or due:
                checkpoint = make()  # in all processes, because all take part in gathering
                checkpoint = checkpoint._replace(population=hosts.gather(checkpoint.population))
                if first:
                    self._save(checkpoint)
            if stopping and first:
                self._manager.wait_until_finished()
        except Exception as error:  # from Orbax, TensorStore or the disk, possibly delayed
            raise self._unwritable(error) from None
        if stopping:
            raise Interrupted

    def _save(self, checkpoint: Checkpoint) -> None:
        # Arrays on a CPU may share memory that is donated to the next segment, so copy them.
        population = jax.tree.map(np.array, checkpoint.population)
        records = _pack(checkpoint.records)
        digest = _sha256((records, population))
        search = checkpoint.search | {
            "format": FORMAT,
            "sha256": digest,
            "holds_population": population is not None,
        }
        free = shutil.disk_usage(self._folder).free
        if free < (needed := tree_bytes((records, population))):
            raise OSError(f"{needed:,} bytes are needed and {free:,} are free")
        items = {
            "search": ocp.args.JsonSave(search),
            "records": ocp.args.StandardSave(records),
        }
        if population is not None:
            items["population"] = ocp.args.StandardSave(population)
        self._manager.wait_until_finished()
        self._manager.save(self._next, args=ocp.args.Composite(**items), force=True)
        self._next += 1

    def restore(self, wanted: Callable[[dict[str, Any]], bool], template: Any) -> Checkpoint | None:
        """Returns the newest intact checkpoint if it can be resumed, otherwise None.

        Args:
          wanted: Function that takes `Checkpoint.search` and returns whether the caller can resume
            from the checkpoint.
          template: Tree with the structure, shapes and dtypes of the population.
        """
        return hosts.from_first(lambda: self._restore_newest(wanted, template))

    def _restore_newest(self, wanted, template) -> Checkpoint | None:
        for step, search in self._newest_first():
            if search is None:
                continue
            if not wanted(search):
                return None
            try:
                return self._restore(step, search, template)
            except Exception as error:  # Orbax raises a bare Exception for truncated files
                self._discard(step, error)
        return None

    def _newest_first(self) -> Iterator[tuple[int, dict[str, Any] | None]]:
        self._manager.wait_until_finished()
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                search = self._manager.restore(
                    step, args=ocp.args.Composite(search=ocp.args.JsonRestore())
                ).search
                if search["format"] != FORMAT:
                    raise ValueError(f"its format is {search['format']}, not {FORMAT}")
                yield step, search
            except Exception as error:
                self._discard(step, error)
                yield step, None

    def _restore(self, step: int, search: dict[str, Any], template: Any) -> Checkpoint:
        items = {"records": ocp.args.StandardRestore()}
        if search["holds_population"]:
            items["population"] = ocp.args.StandardRestore(template)
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        population = restored.get("population")
        if _sha256((restored.records, population)) != search["sha256"]:
            raise ValueError("its arrays are not those that were saved")
        return Checkpoint(search, _unpack(restored.records), population)

    def _discard(self, step: int, error: Exception) -> None:
        self.log(f"checkpoint {step} is damaged ({_line(error)}); going back to the one before")
        shutil.rmtree(self._folder / str(step), ignore_errors=True)
        self._manager.reload()

    def close(self) -> None:
        """Waits until the last checkpoint is written.

        Raises:
          CheckpointError: If the checkpoint cannot be written.
        """
        try:
            if hosts.is_first():
                self._manager.close()
        except Exception as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{self._folder} cannot be written: {_line(error)}; earlier checkpoints are kept, and "
            "the same command resumes from them"
        )


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def tree_bytes(tree: Any) -> int:
    """Returns the total size in bytes of the arrays of a tree.

    Args:
      tree: Tree of arrays or of shapes and dtypes.
    """
    return sum(
        int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
    )


# Calls of an engine -----------------------------------------------------------------------

_ARRAYS = ("telemetry", "curve")


class Batch(NamedTuple):
    """State of a batch of lanes at a segment boundary."""

    step: int  # number of completed steps
    state: TrainState  # state of all lanes
    telemetry: np.ndarray  # telemetry of all completed steps, float32[width, step, 14]
    curve: tuple[tuple[int, np.ndarray], ...]  # pairs (step, validation bpb float64[width])


class Call(NamedTuple):
    """State of a call of `Engine.run`, which identifies jobs by their keys."""

    program: str  # fingerprint of the engine that can resume the call
    finished: dict[str, RunResult]  # results of finished jobs by key
    keys: tuple[str, ...] = ()  # keys of the jobs in the current batch
    batch: Batch | None = None  # current batch, or None between two batches


def to_checkpoint(call: Call) -> Checkpoint:
    """Returns a checkpoint that holds the state of a call.

    Args:
      call: State of a call of `Engine.run`.
    """
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
    """Returns the state of the call that a checkpoint holds, with arrays on the host.

    Args:
      checkpoint: Checkpoint made by `to_checkpoint`.
    """
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
