"""Branches on the switches of a spec, whether they are known or traced."""

from typing import Any

import jax
import jax.numpy as jnp


def is_known(value: Any) -> bool:
    """Returns whether a number is concrete, so that Python code can branch on it."""
    return not isinstance(value, jax.core.Tracer)


def select(condition: Any, on_true: Any, on_false: Any) -> Any:
    """Selects one of two results.

    If the condition is known, XLA removes the computation of the other result, so a specialised
    spec costs only what it uses. A traced condition becomes `jnp.where`. Unlike a product with 0 or
    1, this keeps values that are not finite in the other result out of the selected one.

    Args:
      condition: Boolean scalar, known or traced.
      on_true: Result if the condition holds; an array or a pytree.
      on_false: Result otherwise, with the structure of `on_true`.

    Returns:
      The selected result.
    """
    if is_known(condition):
        return on_true if condition else on_false
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), on_true, on_false)
