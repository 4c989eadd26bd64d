"""Bounds on a computation, and the StableHLO program that is kept of it.

A computation is bounded arithmetic on arrays: `require_bounded` looks at its jaxpr, and the list of
`policy.stablehlo` at every operation of its program.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, jaxpr_as_fun

from nanoevolve_jax.codegen.validation.refusals import Refused, first_line
from nanoevolve_jax.errors import apart
from nanoevolve_jax.execution.uncounted import inner, uncounted_flops
from nanoevolve_jax.policy.stablehlo import require_plain

MAX_OPERATIONS = 3_000
MAX_ITERATIONS = 1_000
MAX_CONSTANT_BYTES = 64 * 1024
MAX_ARRAY_MULTIPLE = 64  # of the largest argument
MIN_ARRAY_BYTES = 4 * 2**20  # allowed whatever the arguments
FLOPS_FLOOR, BYTES_FLOOR = 1e3, 1e5  # allowed whatever the built-in function costs; some cost 0
PLATFORMS = ("cpu", "cuda")


def equations(closed: ClosedJaxpr, times: int = 1) -> Iterator[tuple[JaxprEqn, int]]:
    """Yields every equation and how often it runs, including those of inner jaxprs."""
    for equation in closed.jaxpr.eqns:
        yield equation, times
        for body in inner(equation):
            yield from equations(body, times * equation.params.get("length", 1))


def require_bounded(closed: ClosedJaxpr) -> None:
    """Checks operations, loops, constants, effects and sizes of arrays.

    Raises:
      Refused: With reason 'too_long', 'unbounded_loop', 'nondeterministic', 'cost', 'effect',
        'constant' or 'memory'.
    """
    largest = max(map(_bytes, closed.in_avals), default=0)
    most = max(MAX_ARRAY_MULTIPLE * largest, MIN_ARRAY_BYTES)
    for count, (equation, times) in enumerate(equations(closed), 1):
        if count > MAX_OPERATIONS:
            raise Refused("too_long", f"there must be at most {MAX_OPERATIONS} operations")
        _require_fixed(equation)
        if times > MAX_ITERATIONS:
            raise Refused("cost", f"loops must have at most {MAX_ITERATIONS} steps, got {times}")
        for result in equation.outvars:
            if _bytes(result.aval) > most:
                shape = result.aval.shape
                raise Refused("memory", f"an array must have at most {most} bytes, got {shape}")
    if closed.effects:
        names = sorted(type(effect).__name__ for effect in closed.effects)
        raise Refused("effect", f"it must have no effects, got {', '.join(names)}")
    size = sum(np.asarray(x).nbytes for x in _constants(closed))
    if size > MAX_CONSTANT_BYTES:
        message = f"constants must have at most {MAX_CONSTANT_BYTES} bytes, got {size}"
        raise Refused("constant", message)


def _require_fixed(equation: JaxprEqn) -> None:
    """Refuses an operation whose duration or result is not fixed by its shapes and operands."""
    name = equation.primitive.name
    if name == "while":  # a fixed count is traced to `scan`
        message = "a loop must have a fixed count; use jnp.where to end its effect earlier"
        raise Refused("unbounded_loop", message)
    # A GPU writes to several places in any order, so results vary if two of them are the same.
    if name.startswith("scatter") and math.prod(equation.invars[1].aval.shape[:-1]) != 1:
        message = ".at[...] must name one place: use a number, a slice without step, or jnp.where"
        raise Refused("nondeterministic", message)


def _constants(closed: ClosedJaxpr) -> Iterator[Any]:
    yield from closed.consts
    for equation in closed.jaxpr.eqns:
        yield from (x.val for x in equation.invars if isinstance(x, Literal))
        for body in inner(equation):
            yield from _constants(body)


def _bytes(aval: Any) -> int:
    return math.prod(getattr(aval, "shape", ())) * jax.numpy.dtype(aval.dtype).itemsize


class Cost(NamedTuple):
    """Cost of one call for one matrix."""

    flops: float
    bytes: float  # of memory traffic

    def plus(self, other: "Cost", times: float = 1.0) -> "Cost":
        """Returns the sum with a multiple of another cost."""
        return Cost(self.flops + times * other.flops, self.bytes + times * other.bytes)


def cost_of(closed: ClosedJaxpr) -> Cost:
    """Returns the cost of a computation, which is the same on every machine.

    XLA's analysis of the lowered program counts the body of a loop once, the dearest branch, and
    transcendental functions and sorts not at all. Here loops count as often as they run, all
    branches count, because lanes take them all, and functions count as the multiplications that
    take as long.
    """
    one_lane = [jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for x in closed.in_avals]
    mapped = jax.make_jaxpr(jax.vmap(jaxpr_as_fun(closed)))(*one_lane)
    return _with_loops(mapped).plus(Cost(uncounted_flops(mapped), 0.0))


def _with_loops(closed: ClosedJaxpr) -> Cost:
    avals = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in closed.in_avals]
    facts = jax.jit(jaxpr_as_fun(closed)).lower(*avals).cost_analysis() or {}
    once = Cost(float(facts.get("flops", 0.0)), float(facts.get("bytes accessed", 0.0)))
    return once.plus(_repeated(closed))


def _repeated(closed: ClosedJaxpr) -> Cost:
    """Cost of every run of a loop's body after the first."""
    total = Cost(0.0, 0.0)
    for equation in closed.jaxpr.eqns:
        for body in inner(equation):
            total = total.plus(_repeated(body))
            if equation.primitive.name == "scan":
                total = total.plus(_with_loops(body), equation.params["length"] - 1)
    return total


def require_affordable(cost: Cost, baseline: Cost, multiple: float) -> None:
    """Refuses a cost above a multiple of the built-in function's, with reason 'cost'."""
    floors = Cost(FLOPS_FLOOR, BYTES_FLOOR)
    for name, value, base, floor in zip(Cost._fields, cost, baseline, floors, strict=True):
        limit = multiple * max(base, floor)
        if value > limit:
            given, most = apart(value, limit, 4)
            raise Refused("cost", f"{name} of a call must be at most {most}, got {given}")


def leave_no_paths() -> None:
    """Keeps file names out of programs, so that their bytes are the same everywhere."""
    jax.config.update("jax_traceback_in_locations_limit", 0)
    jax.config.update("jax_include_full_tracebacks_in_locations", True)


def exported(closed: ClosedJaxpr) -> export.Exported:
    """Returns the program of a computation, mapped over a symbolic leading axis `lanes`.

    Raises:
      Refused: With reason 'custom_call' for an operation that is not on the list, 'effect', or
        'trace' if it cannot be mapped.
    """
    (lanes,) = export.symbolic_shape("lanes")
    arguments = [jax.ShapeDtypeStruct((lanes, *x.shape), x.dtype) for x in closed.in_avals]
    run = jaxpr_as_fun(closed)

    def function(*flat):
        return tuple(run(*flat))

    try:
        program = export.export(jax.jit(jax.vmap(function)), platforms=PLATFORMS)(*arguments)
    except Exception as error:
        raise Refused("trace", f"it cannot be exported: {first_line(error)}") from None
    if program.ordered_effects or program.unordered_effects:
        raise Refused("effect", "the program must have no effects")
    require_plain(program.mlir_module(), functools.partial(Refused, "custom_call"))
    return program
