"""Training by several processes that cooperate through `jax.distributed`.

Every process runs the same host loop on the same numbers, so all processes make the same decisions.
Values that differ between processes, such as clocks, signals and free memory, are gathered before a
decision depends on them. The first process owns the console, the run folder and the checkpoints.
The other processes write to private copies of the folder and receive restored state from the first
process.
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

from nanoevolve_jax.errors import must
from nanoevolve_jax.execution.settings import ConfigError

AUTO = "auto"
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_PART = 2**26  # number of bytes per message
_at_end = contextlib.ExitStack()
atexit.register(_at_end.close)
_without_handlers = False


def join() -> None:
    """Connects to the other processes.

    Call this function before JAX starts its backends. JAX detects Slurm, Kubernetes, Open MPI and
    TPUs. For other clusters, this function reads `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`, because JAX itself reads only the address.

    Raises:
      ConfigError: If the other processes are unknown or cannot be reached.
    """
    if jax.distributed.is_initialized():
        return
    address, *numbers = (os.environ.get(name) for name in _VARIABLES)
    try:
        if address is not None and ":" not in address:
            raise ValueError(must(_VARIABLES[0], "have a port", address))
        count, process = (None if number is None else int(number) for number in numbers)
        jax.distributed.initialize(address, count, process)
    except (ValueError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(
            "config.distributed=auto needs a Slurm, Kubernetes, Open MPI or TPU job, or "
            f"{', '.join(_VARIABLES)} ({reason})"
        ) from None
    if not is_first():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def exit_without_handlers() -> None:
    """Makes this process skip the exit handlers of libraries.

    Call this function if one of the handlers would hang.
    """
    global _without_handlers
    _without_handlers = True
    atexit.register(_exit, 1)  # runs before handlers that were registered earlier


def leave_if_handlers_hang(code: Any) -> None:
    """Ends the process at once if `exit_without_handlers` was called.

    Args:
      code: Exit code, as for `sys.exit`.
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
    """Ends a failed process, at once if several processes train together.

    In that case, a normal exit would wait for the other processes, which may in turn wait for this
    one. JAX ends the others when this process ends.

    Args:
      code: Exit code.
    """
    if jax.distributed.is_initialized():
        _exit(code)
    sys.exit(code)


def is_first() -> bool:
    """Returns whether this process owns the console and the run folder."""
    return jax.process_index() == 0


def votes(value: Any) -> np.ndarray:
    """Waits for all processes and returns their values, stacked to shape [processes, ...].

    Args:
      value: Value of this process, a scalar or an array of the same shape in all processes.
    """
    return multihost_utils.process_allgather(np.asarray(value))


def require_same(value: Any, what: str) -> None:
    """Waits for all processes and checks that a value is the same in each of them.

    Args:
      value: Value whose `repr` is compared.
      what: Plural noun that names the value in the error message.

    Raises:
      ConfigError: If the processes have different values.
    """
    digest = hashlib.sha256(repr(value).encode()).digest()[:8]
    if len(np.unique(votes(np.frombuffer(digest, np.uint32)), axis=0)) > 1:
        raise ConfigError(
            f"{what} must be the same in all processes of config.distributed=auto; use hosts of "
            "one kind with the same software and files"
        )


def gather(tree: Any) -> Any:
    """Returns a tree of device arrays as host arrays in every process.

    Args:
      tree: Tree of arrays, which may be distributed over the processes.
    """

    def fetch(x):
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return multihost_utils.process_allgather(x, tiled=True)
        return jax.device_get(x)

    return jax.tree.map(fetch, tree)


def scatter(tree: Any, shardings: Any) -> Any:
    """Places a tree of host arrays on the devices of all processes.

    Args:
      tree: Tree of arrays, which every process holds in full.
      shardings: Tree of shardings with the same structure.
    """

    def put(x, sharding):
        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree, shardings)


@contextlib.contextmanager
def first_goes_first() -> Iterator[None]:
    """Runs the block in the first process, and then in the others, which can use its files."""
    if not is_first():
        votes(0)
    try:
        yield
    finally:
        if is_first():
            votes(0)


def from_first(make: Callable[[], Any]) -> Any:
    """Calls a function in the first process only and returns its result in every process.

    Args:
      make: Function to call. Its result must be picklable.
    """
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
    """Returns the folder itself in the first process and a private copy in each other process.

    Call this function before writing to the folder. A copy is deleted when its process ends.

    Args:
      folder: Folder of the first process. The other processes do not need access to it.
      but: Names of subfolders that are not copied.
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
