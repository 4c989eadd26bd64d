"""Bounds on the cost of a computation, and its export as a StableHLO program.

A computation must be bounded arithmetic on arrays. `require_bounded` checks its jaxpr, and
`exported` checks each operation of its program against the list in `policy.stablehlo`.
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
MAX_ARRAY_MULTIPLE = 64  # largest array, as a multiple of the largest argument
MIN_ARRAY_BYTES = 4 * 2**20  # size of an array that is allowed for arguments of any size
# Baselines below these values are raised to them, because some built-in functions cost nothing.
FLOPS_FLOOR, BYTES_FLOOR = 1e3, 1e5
PLATFORMS = ("cpu", "cuda")


def equations(closed: ClosedJaxpr, times: int = 1) -> Iterator[tuple[JaxprEqn, int]]:
    """Yields every equation with its number of runs, including equations of inner jaxprs.

    Args:
      closed: Computation.
      times: Number of runs of the computation.
    """
    for equation in closed.jaxpr.eqns:
        yield equation, times
        for body in inner(equation):
            yield from equations(body, times * equation.params.get("length", 1))


def require_bounded(closed: ClosedJaxpr) -> None:
    """Checks the operations, loops, constants, effects and array sizes of a computation.

    Args:
      closed: Computation.

    Raises:
      Refused: If a check fails, with reason 'too_long', 'unbounded_loop', 'nondeterministic',
        'cost', 'effect', 'constant' or 'memory'.
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
    """Refuses an operation whose duration or result its shapes and operands do not determine."""
    name = equation.primitive.name
    if name == "while":  # JAX traces loops with a fixed count to `scan`
        message = "a loop must have a fixed count; use jnp.where to end its effect earlier"
        raise Refused("unbounded_loop", message)
    # A GPU scatters values in any order, so the result varies if two indices are equal.
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
    """Cost of a call for a single matrix."""

    flops: float
    bytes: float  # memory traffic in bytes

    def plus(self, other: "Cost", times: float = 1.0) -> "Cost":
        """Returns the sum of this cost and `times` times another cost.

        Args:
          other: Cost to add.
          times: Factor on the added cost.
        """
        return Cost(self.flops + times * other.flops, self.bytes + times * other.bytes)


def cost_of(closed: ClosedJaxpr) -> Cost:
    """Returns the cost of a computation, which is the same on every machine.

    XLA's cost analysis of the lowered program counts the body of a loop once and only the most
    expensive branch. It ignores transcendental functions and sorts. This function counts each
    iteration of a loop. It counts all branches, because mapped lanes execute all of them. It counts
    transcendental functions and sorts as the number of multiplications that take the same time.

    Args:
      closed: Computation for a single matrix.
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
    """Returns the cost of all iterations of loops except for the first ones."""
    total = Cost(0.0, 0.0)
    for equation in closed.jaxpr.eqns:
        for body in inner(equation):
            total = total.plus(_repeated(body))
            if equation.primitive.name == "scan":
                total = total.plus(_with_loops(body), equation.params["length"] - 1)
    return total


def require_affordable(cost: Cost, baseline: Cost, multiple: float) -> None:
    """Checks that a cost is at most a multiple of the built-in function's cost.

    Args:
      cost: Cost of a function.
      baseline: Cost of the built-in function.
      multiple: Largest allowed ratio of the two costs.

    Raises:
      Refused: If the cost is higher, with reason 'cost'.
    """
    floors = Cost(FLOPS_FLOOR, BYTES_FLOOR)
    for name, value, base, floor in zip(Cost._fields, cost, baseline, floors, strict=True):
        limit = multiple * max(base, floor)
        if value > limit:
            given, most = apart(value, limit, 4)
            raise Refused("cost", f"{name} of a call must be at most {most}, got {given}")


def leave_no_paths() -> None:
    """Configures JAX to omit file names from programs, so that their bytes are reproducible."""
    jax.config.update("jax_traceback_in_locations_limit", 0)
    jax.config.update("jax_include_full_tracebacks_in_locations", True)


def exported(closed: ClosedJaxpr) -> export.Exported:
    """Returns the program of a computation, mapped over a symbolic leading axis `lanes`.

    Args:
      closed: Computation for a single matrix.

    Raises:
      Refused: If the program cannot be exported ('trace'), has effects ('effect') or contains an
        operation that is not allowed ('custom_call').
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
