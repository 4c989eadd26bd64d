"""Several processes as one: `jax.distributed`, and the same host loop in every process.

All of them see the same numbers and so take the same decisions. What one of them may know alone (a
clock, a signal, its memory) is voted on. The first process owns the console, the run folder and its
checkpoints; the others write to private copies of the folder, so that whatever a process reads back
it has written itself, and get what is restored from the first.
"""

import atexit
import contextlib
import hashlib
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from nanoevolve_jax.execution.settings import ConfigError

AUTO = "auto"
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_PART = 2**26  # bytes that are sent at once
_at_end = contextlib.ExitStack()
atexit.register(_at_end.close)
_without_handlers = False


def join() -> None:
    """Joins the processes of the cluster; must run before backends start.

    JAX knows Slurm, Kubernetes, Open MPI and TPUs by itself. Of the three variables that stand
    for anything else it reads only the address.

    Raises:
      ConfigError: if nothing says who the others are, or they cannot be reached.
    """
    if jax.distributed.is_initialized():
        return
    address, *numbers = (os.environ.get(name) for name in _VARIABLES)
    try:
        if address is not None and ":" not in address:
            raise ValueError(f"{_VARIABLES[0]} is {address!r}, without a port")
        count, process = (None if number is None else int(number) for number in numbers)
        jax.distributed.initialize(address, count, process)
    except (ValueError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(
            f"config.distributed is 'auto' and fails ({reason}); allowed: "
            f"inside a Slurm, Kubernetes, Open MPI or TPU job, or with {', '.join(_VARIABLES)} set"
        ) from None
    if not is_first():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def exit_without_handlers() -> None:
    """Makes this process skip the exit handlers of libraries, because one of them would hang."""
    global _without_handlers
    _without_handlers = True
    atexit.register(_exit, 1)  # runs first; an exit that passes `leave` has its own code


def leave_if_handlers_hang(code: Any) -> None:
    """Ends the process at once after `exit_without_handlers`; otherwise does nothing.

    Args:
      code: As for `sys.exit`.
    """
    if _without_handlers:
        _exit(code if isinstance(code, int) else int(code is not None))


def _exit(code: int) -> None:
    try:
        _at_end.close()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def leave(code: int) -> None:
    """Ends a process that has failed, at once; JAX ends the others, or they have failed too.

    The usual end would wait for all processes, some of which may be waiting for this one.
    """
    if jax.distributed.is_initialized():
        _exit(code)
    sys.exit(code)


def is_first() -> bool:
    """Whether this process is the one that the user sees."""
    return jax.process_index() == 0


def votes(value: Any) -> np.ndarray:
    """What every process says; waits for all of them. Shape [processes, ...]."""
    return multihost_utils.process_allgather(np.asarray(value))


def require_same(value: Any, what: str) -> None:
    """Refuses to go on if the processes differ in something; waits for all of them.

    Raises:
      ConfigError: naming what differs.
    """
    digest = hashlib.sha256(repr(value).encode()).digest()[:8]
    if len(np.unique(votes(np.frombuffer(digest, np.uint32)), axis=0)) > 1:
        raise ConfigError(
            f"config.distributed is 'auto', and {what} differs between processes; allowed: hosts "
            "of the same kind, with the same software and the same files"
        )


def gather(tree: Any) -> Any:
    """The tree on the host of every process, whichever devices hold it."""

    def fetch(x):
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return multihost_utils.process_allgather(x, tiled=True)
        return jax.device_get(x)

    return jax.tree.map(fetch, tree)


def scatter(tree: Any, shardings: Any) -> Any:
    """Puts a tree that every process has whole onto the devices of all of them."""

    def put(x, sharding):
        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree, shardings)


@contextlib.contextmanager
def first_goes_first() -> Iterator[None]:
    """The others run the block when the first process is through, and find what it has left."""
    if not is_first():
        votes(0)
    try:
        yield
    finally:
        if is_first():
            votes(0)


def from_first(make: Callable[[], Any]) -> Any:
    """What `make` gives the first process, which alone calls it, in every process."""
    if jax.process_count() == 1:
        return make()
    data = np.frombuffer(pickle.dumps(make() if is_first() else None), np.uint8)
    size = int(votes(data.size)[0])
    parts = []
    for start in range(0, size, _PART):
        empty = np.zeros(min(_PART, size - start), np.uint8)
        part = data[start : start + _PART] if is_first() else empty
        parts.append(multihost_utils.broadcast_one_to_all(part).tobytes())
    return pickle.loads(b"".join(parts))


def own_folder(folder: Path, but: Collection[str]) -> Path:
    """The folder itself for the first process, a copy for each of the others.

    Must be called before anything is written to it. A copy ends with its process.

    Args:
      folder: of the first process; no other has to see it.
      but: folders inside it that are not copied.
    """

    def read():
        files = (path for path in folder.rglob("*") if path.is_file())
        inside = {path.relative_to(folder): path for path in files}
        return {
            str(name): path.read_bytes()
            for name, path in inside.items()
            if name.parts[0] not in but
        }

    if jax.process_count() == 1:
        return folder
    content = from_first(read)
    if is_first():
        return folder
    place = tempfile.mkdtemp(prefix="nanoevolve-")
    _at_end.callback(shutil.rmtree, place, ignore_errors=True)
    for name, data in content.items():
        path = Path(place) / folder.name / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return Path(place) / folder.name
