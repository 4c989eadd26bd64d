"""The child process of `compile_check.py`: compiles one training program and exits.

It reads a pickled request of its parent from standard input, writes `BEGUN` when it starts to
compile and `DONE` at the end. It exits as soon as its standard input is closed, so that it does
not outlive its parent.
"""

import contextlib
import os
import pickle
import re
import resource
import sys
import threading
from pathlib import Path
from typing import Any


def main() -> None:
    """Compiles the program of the request, within its limits."""
    import jax

    program, limits, settings, platform = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    for name, value in settings.items():
        if jax.config.values.get(name) != value:
            jax.config.update(name, value)
    if platform == "cpu":  # or JAX would look for accelerators that the parent does not use
        jax.config.update("jax_platforms", platform)
    lowered = lower(program)
    _limit_memory(limits.memory)

    from nanoevolve_jax.execution.compile_check import BEGUN, DONE

    os.write(1, BEGUN)
    lowered.compile()
    os.write(1, DONE)


def _limit_memory(more: int) -> None:
    """Limits private memory to so many bytes more than are in use, where the kernel tells those.

    A client of a GPU has mapped many gigabytes before it compiles anything.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # no such file, or a lower limit is in force
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        used = int(re.search(r"VmData:\s*(\d+) kB", status)[1]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (used + more, used + more))


def lower(program: Any) -> Any:
    """Lowers the training program for arguments as an engine passes them."""
    import jax
    import numpy as np

    from nanoevolve_jax.execution.population import make_programs, stack_candidates, with_code
    from nanoevolve_jax.execution.schedules import Recipe
    from nanoevolve_jax.execution.train import Candidate, Segment
    from nanoevolve_jax.policy.spec import NANOCHAT

    plain = program.task._replace(code=None)
    programs = make_programs(plain, devices=program.devices, lanes=program.lanes)
    width, model = programs.width, plain.model
    recipe = Recipe(*[0.0] * len(Recipe._fields))
    candidates = programs.abstract(stack_candidates([Candidate(NANOCHAT, recipe)] * width))
    seeds = programs.abstract(np.zeros(width, np.uint32))
    steps = np.int32(program.segment_steps)
    state = _result(programs.init_population.lower(candidates, seeds, steps))
    shape = (width, program.segment_steps, plain.batch_size, model.sequence_len)
    tokens = jax.ShapeDtypeStruct(shape, np.int32)
    segment = programs.abstract(
        Segment(tokens, tokens, jax.ShapeDtypeStruct(shape[:2], np.float32))
    )
    coded = with_code(programs, plain, program.task.code)
    return coded.train_segment.lower(state, candidates, segment, np.int32(0), steps)


def _result(lowered: Any) -> Any:
    """Returns shapes, dtypes and shardings of the results of a program.

    On one device XLA chooses other shardings than `Programs.place`, and the key of a program in
    the cache depends on them. The parent has compiled this program before.
    """
    import jax

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
