"""How benchmarks take time: everything warmed, subjects in turn, ratios within a round."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nanoevolve_jax.execution.threads import visible_cores

Run = Callable[[], None]  # does its work and waits for it
COMPILING = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)
_PRIVATE = ("out", "cache", "workdir")  # flags that name places on this machine


def seconds(run: Run) -> float:
    """How long one run takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def interleaved(runs: Mapping[str, Run], rounds: int) -> dict[str, np.ndarray]:
    """Times every subject once a round, in turn; float64[rounds] seconds each.

    Whatever else the machine does then hits all of them alike.
    """
    times = [{name: seconds(run) for name, run in runs.items()} for _ in range(rounds)]
    return {name: np.array([row[name] for row in times]) for name in runs}


def ratio(above: np.ndarray, below: np.ndarray) -> float:
    """The median over rounds of one subject's time over another's."""
    return float(np.median(above / below))


class CompileClock:
    """Seconds that JAX spent on tracing, lowering and compiling since `restart`."""

    def __init__(self):
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._take)

    def restart(self) -> None:
        """Back to 0."""
        self.seconds = 0.0

    def _take(self, event: str, duration: float, **facts: Any) -> None:
        del facts
        if event in COMPILING:
            self.seconds += duration


def matmul(size: int, dtype: Any, repeats: int) -> tuple[Run, float]:
    """A chain of square matmuls on the first device, and its FLOPs."""
    a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype) / np.sqrt(size)

    @jax.jit
    def chain(x):
        # The one product depends on the other, or a compiler could leave all but one out.
        return jax.lax.fori_loop(0, repeats, lambda i, x: (a @ x).astype(dtype), x)

    x = jax.block_until_ready(jnp.asarray(a))
    return (lambda: chain(x).block_until_ready()), 2.0 * size**3 * repeats


def big_matmul(dtype: Any) -> tuple[Run, float]:
    """A matmul large enough for this device's peak, warmed, and its FLOPs."""
    on_cpu = jax.devices()[0].platform == "cpu"
    run, flops = matmul(2048, dtype, 8) if on_cpu else matmul(8192, dtype, 50)
    run()
    return run, flops


def this_device() -> dict[str, Any]:
    """The device in words; from here on this process holds the memory of a GPU."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "count": len(jax.devices()),
        "cores": visible_cores(),
    }


def environment(module: str, device: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a result was made with: the command, the device (by default this one), the versions."""
    return {
        "command": f"python -m {module} {' '.join(_flags(sys.argv[1:]))}".strip(),
        "device": device or this_device(),
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "optax", "numpy")},
    }


def _flags(arguments: Iterable[str]) -> list[str]:
    return [a for a in arguments if a.lstrip("-").partition("=")[0] not in _PRIVATE]
