"""Branches on the switches of a spec, whether they are known or traced."""

from typing import Any

import jax
import jax.numpy as jnp


def is_known(value: Any) -> bool:
    """Returns whether a number is concrete, so that a branch can be taken while tracing."""
    return not isinstance(value, jax.core.Tracer)


def select(condition: Any, on_true: Any, on_false: Any) -> Any:
    """Selects one of two complete results, which are arrays or pytrees of one structure.

    With a known condition, the other branch is dead code, so a specialised spec costs only what it
    uses. A traced condition becomes `jnp.where`. Unlike a product, it keeps a value that is not
    finite in the other branch out of the result.
    """
    if is_known(condition):
        return on_true if condition else on_false
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), on_true, on_false)
