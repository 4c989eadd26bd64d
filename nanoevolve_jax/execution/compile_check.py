"""Trial compilation of training programs with rewritten code in a child process, within limits.

XLA needs minutes and gigabytes to compile some short functions, and a compilation cannot be
interrupted. This process therefore compiles a program only after a child process, which runs this
module, has compiled it within the limits. The child fills the persistent compilation cache, from
which this process loads the result.

The child reads a pickled request from its standard input. It writes `BEGUN` when it starts to
compile and `DONE` at the end. It exits when its standard input is closed, so that it does not
outlive its parent.
"""

import contextlib
import os
import pickle
import re
import resource
import selectors
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import numpy as np

from nanoevolve_jax.execution.population import make_programs, stack_candidates, with_code
from nanoevolve_jax.execution.schedules import Recipe
from nanoevolve_jax.execution.settings import ConfigError
from nanoevolve_jax.execution.train import Candidate, Segment, Task
from nanoevolve_jax.policy.certified import Code
from nanoevolve_jax.policy.spec import NANOCHAT

MODULE = "nanoevolve_jax.execution.compile_check"
BEGUN, DONE = b"compiling\n", b"compiled\n"
"""Lines that the child writes to its standard output."""
_POLL_SECONDS = 0.1
_START_SECONDS = 600.0  # time to import JAX and trace the program, even on a busy machine
_SHOWN = 300  # largest number of characters of the child's last line in a message
_OUT_OF_MEMORY = re.compile(
    rb"MemoryError|bad_alloc|RESOURCE_EXHAUSTED|out of memory|(cannot|unable to) allocate", re.I
)


class CompileLimits(NamedTuple):
    """Limits for the compilation of one training program."""

    seconds: float = 600.0  # wall-clock time in seconds
    memory: int = 8 << 30  # private memory in bytes beyond the memory in use before compilation


class TrainingProgram(NamedTuple):
    """Static arguments of one training program."""

    task: Task  # static description of the training
    code: Code  # rewritten functions
    devices: int  # number of devices in the mesh
    lanes: int  # number of candidates per device
    segment_steps: int  # steps per segment, K


class Stopped(Exception):
    """Exception raised when the user stops a command while a program is compiling."""


_refusals: dict[tuple[TrainingProgram, CompileLimits], str | None] = {}


def refusal(
    program: TrainingProgram,
    limits: CompileLimits,
    stopping: Callable[[], bool] = lambda: False,
) -> str | None:
    """Returns the reason why a program must not be compiled in this process, or None.

    Each pair of a program and limits is tried once per process.

    Args:
      program: Program to compile.
      limits: Limits for the compilation.
      stopping: Function that returns whether the user has asked to stop.

    Raises:
      Stopped: If the user asked to stop. The child has then been killed.
      ConfigError: If the child fails before it starts to compile, which is not the fault of the
        program.
    """
    key = (program, limits)
    if key not in _refusals:
        _refusals[key] = _tried(program, limits, stopping)
    return _refusals[key]


def _tried(program: TrainingProgram, limits: CompileLimits, stopping) -> str | None:
    with tempfile.TemporaryFile() as errors, _child(errors) as child:
        with contextlib.suppress(BrokenPipeError):
            pickle.dump((program, limits, _jax_settings(), jax.default_backend()), child.stdin)
            child.stdin.flush()
        if not _reads(child, BEGUN, _START_SECONDS, stopping):
            last = _last_line(child, errors)
            raise ConfigError(
                f"code {program.code.id} cannot be compiled in a process of its own: {last}"
            )
        if _reads(child, DONE, limits.seconds, stopping):
            return None
        if child.poll() is None:
            return f"its training program does not compile within {limits.seconds:g} s"
        return _failure(child, errors, limits)


@contextlib.contextmanager
def _child(errors: IO[bytes]):
    """Starts the child and kills it at the end of the block."""
    paths = [os.path.abspath(path or os.getcwd()) for path in sys.path]
    # The child shares a GPU with this process, which has reserved most of its memory.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    environment |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    child = subprocess.Popen(
        [sys.executable, "-B", "-m", MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=environment,
        start_new_session=True,  # so that Ctrl-C in a terminal does not interrupt the child
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        child.stdout.close()


def _jax_settings() -> dict[str, Any]:
    """Returns the settings of JAX, which affect the cache key of a program."""
    plain = (bool, int, float, str)
    return {name: value for name, value in jax.config.values.items() if isinstance(value, plain)}


def _reads(child: subprocess.Popen, line: bytes, seconds: float, stopping) -> bool:
    """Waits for a line from the child and returns whether it arrived before the deadline.

    Args:
      child: Child process.
      line: Expected line.
      seconds: Longest wait in seconds.
      stopping: Function that returns whether the user has asked to stop.

    Raises:
      Stopped: If the user asked to stop.
    """
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while time.monotonic() < deadline:
            if stopping():
                raise Stopped
            if selector.select(_POLL_SECONDS):
                if os.read(child.stdout.fileno(), len(line)) == line:
                    return True
                child.wait()
                return False
    return False


def _failure(child: subprocess.Popen, errors: IO[bytes], limits: CompileLimits) -> str:
    """Returns the reason why the child failed after it had started to compile."""
    errors.seek(0)
    if _OUT_OF_MEMORY.search(errors.read()):
        memory = limits.memory / 2**30
        return f"its training program does not compile within {memory:.3g} GiB of memory"
    if child.returncode < 0:
        return f"its training program does not compile: signal {-child.returncode} in the compiler"
    return f"its training program does not compile: {_last_line(child, errors)}"


def _last_line(child: subprocess.Popen, errors: IO[bytes]) -> str:
    """Returns the last line of the child's standard error, or its exit code if there is none."""
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    if lines and child.poll() is not None:
        return lines[-1][:_SHOWN]
    return "it takes too long to start" if child.poll() is None else f"code {child.returncode}"


# The child process ------------------------------------------------------------------------


def main() -> None:
    """Compiles the requested program within its limits. Runs in the child process."""
    program, limits, settings, platform = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    for name, value in settings.items():
        if jax.config.values.get(name) != value:
            jax.config.update(name, value)
    if platform == "cpu":  # prevents JAX from starting accelerators that the parent does not use
        jax.config.update("jax_platforms", platform)
    lowered = lower(program)
    _limit_memory(limits.memory)
    os.write(1, BEGUN)
    lowered.compile()
    os.write(1, DONE)


def _limit_memory(more: int) -> None:
    """Limits private memory to the memory in use plus a number of bytes.

    The limit is relative because a process that uses a GPU maps many gigabytes before it compiles
    anything. Memory is not limited if the kernel does not report the memory in use.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # if the file is missing or a limit is lower
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        used = int(re.search(r"VmData:\s*(\d+) kB", status)[1]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (used + more, used + more))


def lower(program: TrainingProgram) -> Any:
    """Returns the training program lowered for the arguments that an engine passes.

    Args:
      program: Program to lower.
    """
    task = program.task
    programs = make_programs(task, devices=program.devices, lanes=program.lanes)
    width, model = programs.width, task.model
    recipe = Recipe(*[0.0] * len(Recipe._fields))
    candidates = programs.abstract(stack_candidates([Candidate(NANOCHAT, recipe)] * width))
    seeds = programs.abstract(np.zeros(width, np.uint32))
    steps = np.int32(program.segment_steps)
    state = _result(programs.init_population.lower(candidates, seeds, steps))
    shape = (width, program.segment_steps, task.batch_size, model.sequence_len)
    tokens = jax.ShapeDtypeStruct(shape, np.int32)
    segment = programs.abstract(
        Segment(tokens, tokens, jax.ShapeDtypeStruct(shape[:2], np.float32))
    )
    coded = with_code(programs, task, program.code)
    return coded.train_segment.lower(state, candidates, segment, np.int32(0), steps)


def _result(lowered: Any) -> Any:
    """Returns the shapes, dtypes and shardings of the results of a program.

    On one device, XLA chooses other shardings than `Programs.place`, and the cache key of the
    training program depends on them. The parent has compiled the same program before.
    """
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        lowered.out_info,
        lowered.compile().output_shardings,
    )


def _exit_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
