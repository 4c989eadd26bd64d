"""FLOPs that XLA does not count: transcendental functions, sorts, gathers and integer products.

XLA counts a sine, a square root or a power as 0 FLOPs and a comparison in a sort as 1 FLOP. This
module counts each operation as the number of multiplications that take the same time.
"""

import math
from collections.abc import Iterator

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

# FLOPs per element of the result. A weight is the measured time relative to an elementwise float32
# multiplication, on one core of an x86-64 CPU with AVX-512 (jaxlib 0.10, arrays of 65,536 elements,
# rounded).
WEIGHTS = {
    "sqrt": 2,
    "rsqrt": 3,
    **dict.fromkeys(("exp", "exp2", "log", "tanh", "logistic", "erf", "erfc", "erf_inv"), 5),
    "gather": 10,
    **dict.fromkeys(("expm1", "log1p"), 13),
    **dict.fromkeys(("sin", "cos"), 25),
    **dict.fromkeys(("tan", "sinh", "cosh", "asinh", "acosh", "atanh", "asin", "acos", "atan"), 30),
    **dict.fromkeys(("rem", "pow"), 50),
    **dict.fromkeys(("cbrt", "atan2", "digamma", "lgamma"), 100),
}
# FLOPs per element of the operand, measured in the same way.
_OF_OPERANDS = dict.fromkeys(("argmax", "argmin"), 50)
_INTEGER_PRODUCT = 60  # time of an integer matrix product relative to a float matrix product
_COMPARISON = 70  # FLOPs of a sort per element and per doubling of the sorted length


def inner(equation: JaxprEqn) -> Iterator[ClosedJaxpr]:
    """Yields the closed jaxprs inside an equation, which are bodies of loops, branches and calls.

    Args:
      equation: Equation of a jaxpr.
    """
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item
            elif isinstance(item, Jaxpr):
                yield ClosedJaxpr(item, ())


def uncounted_flops(closed: ClosedJaxpr) -> float:
    """Returns the FLOPs of a computation that XLA does not count.

    The body of a scan counts once per iteration, and the body of any other loop counts once. All
    branches of a conditional count.

    Args:
      closed: Computation to analyse.
    """
    total = 0.0
    for equation in closed.jaxpr.eqns:
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * sum(map(uncounted_flops, inner(equation))) + _own(equation)
    return total


def _own(equation: JaxprEqn) -> float:
    name = equation.primitive.name
    operand = equation.invars[0].aval if equation.invars else None
    if name == "sort":
        length = operand.shape[equation.params["dimension"]]
        return _COMPARISON * math.prod(operand.shape) * math.log2(max(2, length))
    if name == "dot_general" and not jnp.issubdtype(operand.dtype, jnp.floating):
        (contracted, _), _ = equation.params["dimension_numbers"]
        length = math.prod(operand.shape[axis] for axis in contracted)
        return (_INTEGER_PRODUCT - 1) * 2 * length * math.prod(equation.outvars[0].aval.shape)
    if name in _OF_OPERANDS:
        return _OF_OPERANDS[name] * math.prod(operand.shape)
    if name in WEIGHTS:
        return WEIGHTS[name] * math.prod(equation.outvars[0].aval.shape)
    return 0.0
