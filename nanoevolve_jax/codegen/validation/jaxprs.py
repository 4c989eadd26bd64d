"""What a computation may consist of: checks on a jaxpr before anything is compiled."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

from nanoevolve_jax.codegen.validation.primitives import require_allowed
from nanoevolve_jax.codegen.validation.refusals import Refused
from nanoevolve_jax.execution.uncounted import inner

MAX_OPERATIONS = 3_000
MAX_ITERATIONS = 1_000
MAX_CONSTANT_BYTES = 64 * 1024
MAX_ARRAY_MULTIPLE = 64  # of the largest argument
MIN_ARRAY_BYTES = 4 * 2**20


def equations(closed: ClosedJaxpr) -> Iterator[JaxprEqn]:
    """All equations, those of inner jaxprs included."""
    for equation in closed.jaxpr.eqns:
        yield equation
        for body in inner(equation):
            yield from equations(body)


def constants(closed: ClosedJaxpr) -> Iterator[Any]:
    """All constants, those of inner jaxprs and literals included."""
    yield from closed.consts
    for equation in closed.jaxpr.eqns:
        yield from (x.val for x in equation.invars if isinstance(x, Literal))
        for body in inner(equation):
            yield from constants(body)


def require_harmless(closed: ClosedJaxpr) -> None:
    """Refuses a computation that does more than bounded arithmetic on arrays.

    Raises:
      Refused: with a reason of `primitives.require_allowed`, or 'too_long', 'effect', 'cost',
        'constant' or 'memory'.
    """
    for count, equation in enumerate(equations(closed), 1):
        if count > MAX_OPERATIONS:
            raise Refused("too_long", f"over {MAX_OPERATIONS} operations, the most allowed")
        require_allowed(equation)
    effects = sorted(type(effect).__name__ for effect in closed.effects)
    if effects:
        raise Refused("effect", f"effects {', '.join(effects)}; allowed: none")
    _require_bounded_loops(closed, 1)
    size = sum(np.asarray(x).nbytes for x in constants(closed))
    if size > MAX_CONSTANT_BYTES:
        raise Refused("constant", f"{size} bytes of constants; allowed: {MAX_CONSTANT_BYTES}")
    _require_moderate_arrays(closed)


def _require_bounded_loops(closed: ClosedJaxpr, repeated: int) -> None:
    for equation in closed.jaxpr.eqns:
        times = repeated * equation.params.get("length", 1) if _is_scan(equation) else repeated
        if times > MAX_ITERATIONS:
            raise Refused("cost", f"loops of {times} steps; allowed: at most {MAX_ITERATIONS}")
        for body in inner(equation):
            _require_bounded_loops(body, times)


def _is_scan(equation: JaxprEqn) -> bool:
    return equation.primitive.name == "scan"


def _bytes(aval: Any) -> int:
    return math.prod(getattr(aval, "shape", ())) * jax.numpy.dtype(aval.dtype).itemsize


def _require_moderate_arrays(closed: ClosedJaxpr) -> None:
    largest = max(map(_bytes, closed.in_avals), default=0)
    allowed = max(MAX_ARRAY_MULTIPLE * largest, MIN_ARRAY_BYTES)
    for equation in equations(closed):
        for result in equation.outvars:
            if _bytes(result.aval) > allowed:
                raise Refused(
                    "memory",
                    f"an array of shape {result.aval.shape}; allowed: at most {allowed} bytes",
                )
