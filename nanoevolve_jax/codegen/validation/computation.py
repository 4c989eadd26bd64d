"""Hashes the computation of a jaxpr independently of the way in which its source is written.

The hash of a value depends on the operation that computes it, the parameters of the operation and
the hashes of the operands. The hash of a jaxpr depends on the hashes of its results only, so names,
the order of independent operations, dead code and calls of helper functions have no effect.
Algebraic identities are not used: `x + x` and `2 * x` have different hashes.
"""

import dataclasses
import enum
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

_COMMUTATIVE = frozenset(("add", "add_any", "mul", "max", "min", "and", "or", "xor", "eq", "ne"))
_MIRRORED = {"gt": "lt", "ge": "le"}
_CALLS = {  # primitives that call a jaxpr, and the parameter that contains it
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "remat": "jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
}
_IDENTITIES = frozenset(("copy", "copy_p", "name", "optimization_barrier", "device_put"))
_SILENT = frozenset(  # parameters that do not affect the results
    ("name", "sharding", "out_sharding", "unroll", "linear", "weak_type", "_split_transpose")
)


def computation_hash(computations: Mapping[str, ClosedJaxpr]) -> str:
    """Returns the joint hash of a function's computations.

    Args:
      computations: Computations by shape key.

    Returns:
      SHA-256 hash as 64 hexadecimal digits.
    """
    return _hash("function", *(f"{key} {graph(computations[key])}" for key in sorted(computations)))


def graph(closed: ClosedJaxpr) -> str:
    """Returns the hash of a computation as 64 hexadecimal digits.

    Args:
      closed: Computation to hash.
    """
    arguments = [
        _hash("argument", str(i), str(aval.shape), str(aval.dtype))
        for i, aval in enumerate(closed.in_avals)
    ]
    return _hash("graph", *_results(closed, arguments))


def _hash(*parts: str) -> str:
    # The lengths distinguish ('ab', 'c') from ('a', 'bc').
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()


def _results(closed: ClosedJaxpr, arguments: Iterable[str]) -> list[str]:
    """Returns the hashes of the results, given the hashes of the arguments."""
    jaxpr = closed.jaxpr
    hashes = dict(zip(jaxpr.invars, arguments, strict=True))
    hashes |= zip(jaxpr.constvars, map(_constant, closed.consts), strict=True)

    def hash_of(atom):
        return _constant(atom.val, atom.aval) if isinstance(atom, Literal) else hashes[atom]

    for equation in jaxpr.eqns:
        operands = [hash_of(x) for x in equation.invars]
        hashes |= zip(equation.outvars, _computed(equation, operands), strict=True)
    return [hash_of(x) for x in jaxpr.outvars]


def _constant(value: Any, aval: Any = None) -> str:
    array = np.asarray(value, getattr(aval, "dtype", None))
    return _hash("constant", str(array.shape), str(array.dtype), array.tobytes().hex())


def _computed(equation: JaxprEqn, operands: list[str]) -> list[str]:
    name, params = equation.primitive.name, equation.params
    if name in _CALLS:
        called = params[_CALLS[name]]
        return _results(_closed(called), operands)
    if name in _IDENTITIES or _changes_nothing(equation):
        return operands
    if name in _MIRRORED:
        name, operands = _MIRRORED[name], operands[::-1]
    if name in _COMMUTATIVE:
        operands = sorted(operands)
    described = [f"{key}={_described(params[key])}" for key in sorted(params.keys() - _SILENT)]
    value = _hash("operation", name, *described, "of", *operands)
    return [_hash("result", str(i), value) for i in range(len(equation.outvars))]


def _changes_nothing(equation: JaxprEqn) -> bool:
    """Returns whether an equation converts to the dtype that its operand already has."""
    if equation.primitive.name != "convert_element_type":
        return False
    return equation.invars[0].aval.dtype == equation.outvars[0].aval.dtype


def _closed(jaxpr: ClosedJaxpr | Jaxpr) -> ClosedJaxpr:
    return jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())


def _described(value: Any) -> str:
    """Returns a parameter as text that is the same in every process."""
    if isinstance(value, ClosedJaxpr | Jaxpr):
        return graph(_closed(value))
    if isinstance(value, np.ndarray | jax.Array):
        return _constant(value)
    if isinstance(value, Mapping):
        return _described(tuple(sorted((str(k), _described(v)) for k, v in value.items())))
    if isinstance(value, tuple | list):
        return f"({','.join(map(_described, value))})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [getattr(value, field.name) for field in dataclasses.fields(value)]
        return f"{type(value).__name__}{_described(tuple(fields))}"
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, type | Callable):
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value)
