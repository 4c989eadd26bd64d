"""What a computation costs, counted from its lowered program: the same on every machine."""

from typing import NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from nanoevolve_jax.codegen.validation.refusals import Refused
from nanoevolve_jax.errors import apart
from nanoevolve_jax.execution.uncounted import inner, uncounted_flops

FLOPS_FLOOR, BYTES_FLOOR = 1e3, 1e5
"""What any function may cost: some built-in ones cost nothing."""


class Cost(NamedTuple):
    """FLOPs and bytes of memory traffic of one call for one matrix."""

    flops: float
    bytes: float

    def plus(self, other: "Cost", times: float = 1.0) -> "Cost":
        """The sum with so many times another cost."""
        return Cost(self.flops + times * other.flops, self.bytes + times * other.bytes)


def cost_of(closed: ClosedJaxpr) -> Cost:
    """Returns the cost of a computation; loops count as often as they run, of branches all.

    Transcendental functions and sorts count as the multiplications that take as long.
    XLA's analysis counts the body of a loop once, and of branches the dearest; in lanes, branches
    are all taken.
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
    """What comes on top of every loop body's first run."""
    total = Cost(0.0, 0.0)
    for equation in closed.jaxpr.eqns:
        for body in inner(equation):
            total = total.plus(_repeated(body))
            if equation.primitive.name == "scan":
                total = total.plus(_with_loops(body), equation.params["length"] - 1)
    return total


def require_affordable(cost: Cost, baseline: Cost, multiple: float) -> None:
    """Refuses a cost above a multiple of the built-in function's.

    Raises:
      Refused: with reason 'cost'.
    """
    floors = Cost(FLOPS_FLOOR, BYTES_FLOOR)
    for name, value, base, floor in zip(Cost._fields, cost, baseline, floors, strict=True):
        allowed = multiple * max(base, floor)
        if value > allowed:
            given, most = apart(value, allowed, 4)
            raise Refused("cost", f"{name} of a call must be at most {most}, got {given}")
