"""Traces the function of a source to a computation for each shape.

After tracing, only the computations are used and the Python function is not called again.
"""

import contextlib
import math
import signal
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr

from nanoevolve_jax.codegen.validation.computation import graph
from nanoevolve_jax.codegen.validation.refusals import Refused, first_line
from nanoevolve_jax.policy.slots import SLOTS, Shape

TRACING_SECONDS = 8.0
LONGEST_RANGE = 10_000
_FILENAME = "<source>"


def traced(source: str, slot: str, shape: Shape, dtype: str) -> ClosedJaxpr:
    """Returns the computation of a source for a single matrix.

    Its arguments and results are the flattened arguments and results of the slot's contract. The
    function is traced twice to check that it is deterministic.

    Args:
      source: Python text that `language.check` has accepted.
      slot: Name of the slot, one of `SLOTS`.
      shape: Shape (inputs, outputs) of the matrix, or None for a slot that takes no matrix.
      dtype: Dtype of the matrix iteration, 'float32' or 'bfloat16'.

    Raises:
      Refused: If the source cannot be traced or breaks its contract, with reason 'trace',
        'endless', 'memory', 'shape', 'dtype' or 'nondeterministic'.
    """
    leaves, structure = jax.tree.flatten(SLOTS[slot].arguments(shape))
    with _refusals_for_errors(), deadline(TRACING_SECONDS):
        function = _defined(source, slot, dtype)

        def trace() -> ClosedJaxpr:
            # A new function is defined for each trace, because JAX caches traces by function.
            def flat(*arguments):
                results = function(*jax.tree.unflatten(structure, arguments))
                return _of_contract(results, slot, SLOTS[slot].results(shape))

            return jax.make_jaxpr(flat)(*leaves)

        first, second = trace(), trace()
        if graph(first) != graph(second):
            raise Refused("nondeterministic", "two calls give different computations")
        return first


def _defined(source: str, slot: str, dtype: str) -> Callable[..., Any]:
    """Executes the definitions of a source and returns the function of its slot."""
    names = {"jnp": jnp, "lax": lax, "jax": jax, "math": math, "range": _bounded_range}
    names["compute_dtype"] = getattr(jnp, dtype)
    exec(compile(source, _FILENAME, "exec", dont_inherit=True), names)
    return names[slot]


def _bounded_range(*bounds: int) -> range:
    steps = range(*bounds)
    if steps[LONGEST_RANGE:]:  # `len` raises an error for very long ranges
        raise Refused("endless", f"a range must have at most {LONGEST_RANGE} steps")
    return steps


def _of_contract(results: Any, slot: str, contract: tuple[Any, ...]) -> tuple[jax.Array, ...]:
    """Returns flat results after checking their shapes and dtypes. Python numbers are converted."""
    leaves, names = jax.tree.leaves(results), SLOTS[slot].result_names
    if len(leaves) != len(contract):
        message = f"{slot!r} must return {', '.join(names)}, got {len(leaves)} results"
        raise Refused("shape", message)
    for name, value, like in zip(names, leaves, contract, strict=True):
        try:
            kind = jax.typeof(value)
        except TypeError:
            raise Refused("dtype", f"result {name!r} is a {type(value).__name__}") from None
        if kind.shape != like.shape:
            raise Refused("shape", f"{name!r} must have shape {like.shape}, got {kind.shape}")
        if kind.dtype != like.dtype:
            raise Refused("dtype", f"{name!r} must be of {like.dtype}, got {kind.dtype}")
    return tuple(jnp.asarray(x, like.dtype) for x, like in zip(leaves, contract, strict=True))


@contextlib.contextmanager
def _refusals_for_errors() -> Iterator[None]:
    """Converts every exception of a source into a refusal that names the line."""
    try:
        yield
    except Exception as error:
        cause: BaseException = error
        while isinstance(cause, SystemError) and cause.__cause__ is not None:
            cause = cause.__cause__  # original error in C code, such as a deep recursion
        if isinstance(error, Refused):
            reason, message = error.refusal
        elif isinstance(error, MemoryError):
            reason, message = "memory", "it needs more memory than the sandbox has"
        else:
            reason, message = "trace", first_line(cause)
        frames = traceback.walk_tb(error.__traceback__)
        lines = [line for frame, line in frames if frame.f_code.co_filename == _FILENAME]
        raise Refused(reason, f"line {lines[-1]}: {message}" if lines else message) from None


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Limits the CPU time of a block, which does not depend on other processes of the machine.

    Python loops are interrupted immediately. A long call into C is interrupted only when it
    returns, and is otherwise ended by the time limit of the sandbox.

    Args:
      seconds: Largest CPU time of the process.

    Raises:
      Refused: If the block takes longer, with reason 'endless'.
    """

    def on_alarm(signum, frame):
        del signum, frame
        raise Refused("endless", f"tracing takes over {seconds:g} s of CPU time")

    previous = signal.signal(signal.SIGPROF, on_alarm)
    # The alarm repeats after each further second, in case the first exception is suppressed.
    signal.setitimer(signal.ITIMER_PROF, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, previous)
