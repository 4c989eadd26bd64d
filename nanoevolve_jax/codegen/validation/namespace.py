"""What a source meets when its definitions are executed: allowed names, and nothing behind them."""

import builtins
import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from nanoevolve_jax.codegen.validation.refusals import Refused
from nanoevolve_jax.codegen.validation.vocabulary import BUILTINS, MODULES

LONGEST_RANGE = 10_000
FILENAME = "<source>"

_MODULES = {
    "jnp": jnp,
    "jnp.linalg": jnp.linalg,
    "jax.numpy": jnp,
    "jax.numpy.linalg": jnp.linalg,
    "jax.lax": jax.lax,
    "lax": jax.lax,
    "jax.nn": jax.nn,
    "math": math,
}


class Names:
    """A module of which only some names are there; it cannot be changed."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]):
        object.__setattr__(self, "_values", MappingProxyType(dict(values)))

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(f"{name!r} is not allowed") from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name!r} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name!r} cannot be deleted")


def _bounded_range(*bounds: int) -> range:
    steps = range(*bounds)
    if steps[LONGEST_RANGE:]:  # its length may be more than `len` can say
        raise Refused("endless", f"a range has over {LONGEST_RANGE} steps, the most allowed")
    return steps


def _allowed(path: str) -> dict[str, Any]:
    return {name: _called_from_here(getattr(_MODULES[path], name)) for name in MODULES[path]}


@functools.cache  # two names of one function are one function here too, as in an exported file
def _called_from_here(value: Any) -> Any:
    """A function in a frame of this module; constants and dtypes as they are.

    Code in C imports with the builtins of the frame that called it, and a source's have no import.
    """
    if isinstance(value, type) or not callable(value):
        return value

    def function(*args, **kwargs):
        return value(*args, **kwargs)

    return function


def globals_for(dtype: str) -> dict[str, Any]:
    """Globals for a source; a new dictionary every time.

    Args:
      dtype: 'float32' or 'bfloat16', the value of `compute_dtype`.
    """
    numpy = Names(_allowed("jnp") | {"linalg": Names(_allowed("jnp.linalg"))})
    lax = Names(_allowed("lax"))
    allowed = {name: getattr(builtins, name) for name in BUILTINS} | {"range": _bounded_range}
    return {
        "__builtins__": allowed,
        "jnp": numpy,
        "lax": lax,
        "jax": Names({"nn": Names(_allowed("jax.nn")), "lax": lax, "numpy": numpy}),
        "math": Names(_allowed("math")),
        "compute_dtype": {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[dtype],
    }


def define(source: str, slot: str, dtype: str) -> Callable[..., Any]:
    """Executes the definitions of a source that `language.check` has passed; gives its function."""
    names = globals_for(dtype)
    exec(compile(source, FILENAME, "exec", dont_inherit=True), names)
    return names[slot]
