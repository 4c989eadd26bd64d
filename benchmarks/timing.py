"""Timing of benchmarks, where warm subjects take turns and ratios are taken within a round."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nanoevolve_jax.execution.machine import visible_cores

Run = Callable[[], None]  # function that does its work and waits until it is complete
COMPILING = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)
_PRIVATE = ("out", "cache", "workdir")  # flags with paths of this machine, left out of results


def seconds(run: Run) -> float:
    """Returns the duration of one run in seconds."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def interleaved(runs: Mapping[str, Run], rounds: int) -> dict[str, np.ndarray]:
    """Times all subjects in turn, once per round, so that other load affects them equally.

    Args:
      runs: Run of each subject, already warm.
      rounds: Number of rounds.

    Returns:
      Times in seconds by subject, float64[rounds].
    """
    times = [{name: seconds(run) for name, run in runs.items()} for _ in range(rounds)]
    return {name: np.array([row[name] for row in times]) for name in runs}


def ratio(above: np.ndarray, below: np.ndarray) -> float:
    """Returns the median over rounds of the ratio between the times of two subjects.

    Args:
      above: Times of the numerator, float64[rounds].
      below: Times of the denominator, float64[rounds].
    """
    return float(np.median(above / below))


class CompileClock:
    """Clock of the seconds that JAX spends on tracing, lowering and compiling."""

    def __init__(self):
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._take)

    def restart(self) -> None:
        """Resets the clock to 0."""
        self.seconds = 0.0

    def _take(self, event: str, duration: float, **facts: Any) -> None:
        del facts
        if event in COMPILING:
            self.seconds += duration


def matmul(size: int, dtype: Any, repeats: int) -> tuple[Run, float]:
    """Returns a run of a chain of square matrix products on the first device, and its FLOPs.

    Args:
      size: Number of rows and columns.
      dtype: Dtype of the matrices.
      repeats: Number of products.
    """
    a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype) / np.sqrt(size)

    @jax.jit
    def chain(x):
        # Each product depends on the one before, so the compiler cannot remove any.
        return jax.lax.fori_loop(0, repeats, lambda i, x: (a @ x).astype(dtype), x)

    x = jax.block_until_ready(jnp.asarray(a))
    return (lambda: chain(x).block_until_ready()), 2.0 * size**3 * repeats


def big_matmul(dtype: Any) -> tuple[Run, float]:
    """Returns a warm run of products that are large enough for peak speed, and its FLOPs.

    Args:
      dtype: Dtype of the matrices.
    """
    on_cpu = jax.devices()[0].platform == "cpu"
    run, flops = matmul(2048, dtype, 8) if on_cpu else matmul(8192, dtype, 50)
    run()
    return run, flops


def this_device() -> dict[str, Any]:
    """Returns a description of the device.

    On a GPU, this call makes JAX reserve device memory for this process.
    """
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "count": len(jax.devices()),
        "cores": visible_cores(),
    }


def environment(module: str, device: dict[str, Any] | None = None) -> dict[str, Any]:
    """Returns the command, device and versions that belong to a result.

    Args:
      module: Name of the benchmark's module.
      device: Description of the device, or None for the device of this process.
    """
    return {
        "command": f"python -m {module} {' '.join(_flags(sys.argv[1:]))}".strip(),
        "device": device or this_device(),
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "optax", "numpy")},
    }


def _flags(arguments: Iterable[str]) -> list[str]:
    return [a for a in arguments if a.lstrip("-").partition("=")[0] not in _PRIVATE]
