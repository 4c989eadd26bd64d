"""How many threads a CPU computes with."""

import os

_THREADS = "NPROC"  # read by XLA's CPU client when it starts, in place of the count of cores


def visible_cores() -> int:
    """Processors this process may use: what a CPU run is divided by."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limit_threads(threads: int) -> None:
    """Lets XLA compute with so many threads; must run before JAX starts its backends."""
    os.environ[_THREADS] = str(threads)


def compute_threads() -> int:
    """Threads that XLA's pools have in this process: they decide how a CPU rounds."""
    return int(os.environ.get(_THREADS) or visible_cores())
