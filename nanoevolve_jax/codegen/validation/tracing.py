"""From a source to a computation: its function is traced once a shape, and never called again."""

import contextlib
import signal
import traceback
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr

from nanoevolve_jax.codegen.validation.computation import graph
from nanoevolve_jax.codegen.validation.contract import RESULTS
from nanoevolve_jax.codegen.validation.namespace import FILENAME, define
from nanoevolve_jax.codegen.validation.refusals import Refused
from nanoevolve_jax.policy.slots import SLOTS, Shape

TRACING_SECONDS = 8.0


def traced(source: str, slot: str, shape: Shape, dtype: str) -> ClosedJaxpr:
    """The computation of one matrix, with flat arguments and results as the contract has them.

    Args:
      source: text that `language.check` has passed.
      slot: one of `SLOTS`.
      shape: (inputs, outputs), or None.
      dtype: 'float32' or 'bfloat16', of the iteration.

    Raises:
      Refused: with reason 'trace', 'endless', 'shape', 'dtype' or 'nondeterministic'.
    """
    leaves, structure = jax.tree.flatten(SLOTS[slot].arguments(shape))

    with _described(), deadline(TRACING_SECONDS):
        function = define(source, slot, dtype)

        def trace():
            def flat(*arguments):  # another object each time, or JAX would give what it has
                results = function(*jax.tree.unflatten(structure, arguments))
                return _as_agreed(results, slot, SLOTS[slot].results(shape))

            return jax.make_jaxpr(flat)(*leaves)

        first, second = trace(), trace()
        if graph(first) != graph(second):
            raise Refused("nondeterministic", "two calls give different computations")
        return first


def _as_agreed(results: Any, slot: str, wanted: tuple[Any, ...]) -> tuple[jax.Array, ...]:
    """Flat results of the contract's shapes and dtypes; only numbers of Python are cast."""
    found = jax.tree.leaves(results)
    if len(found) != len(wanted):
        raise Refused(
            "shape", f"{slot!r} gives {len(found)} results; wanted: {', '.join(RESULTS[slot])}"
        )
    return tuple(map(_cast, RESULTS[slot], found, wanted))


def _cast(name: str, value: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
    try:
        kind = jax.typeof(value)
    except TypeError:
        raise Refused("dtype", f"result {name!r} is a {type(value).__name__}") from None
    if kind.shape != like.shape:
        raise Refused("shape", f"result {name!r} has shape {kind.shape}; wanted: {like.shape}")
    if kind.dtype != like.dtype:
        raise Refused("dtype", f"result {name!r} is of {kind.dtype}; wanted: {like.dtype}")
    return jnp.asarray(value, like.dtype)


@contextlib.contextmanager
def _described() -> Iterator[None]:
    """Whatever a source raises becomes a refusal that names the line."""
    try:
        yield
    except Refused as error:
        reason, message = error.refusal
        raise Refused(reason, _located(error, message)) from None
    except MemoryError as error:
        message = "it needs more memory than the child has"
        raise Refused("memory", _located(error, message)) from None
    except Exception as error:
        cause = error
        while isinstance(cause, SystemError) and cause.__cause__ is not None:
            cause = cause.__cause__  # what code in C met, such as a deep recursion
        first = (str(cause).strip().splitlines() or [""])[0]
        raise Refused("trace", _located(error, f"{type(cause).__name__}: {first}")) from None


def _located(error: BaseException, message: str) -> str:
    frames = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in frames if frame.f_code.co_filename == FILENAME]
    return f"line {lines[-1]}: {message}" if lines else message


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Refuses what takes more CPU time; Python's own loops end, a long call into C only after it.

    CPU time does not depend on what else the machine does. The process that started this one has
    a limit of wall-clock time, which ends everything.
    """

    def ring(signum, frame):
        del signum, frame
        raise Refused("endless", f"tracing takes over {seconds:g} s of CPU time")

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds, 1.0)  # again, should the first be swallowed
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)
