"""One way to branch on a spec's switches, whether they are known or traced."""

from typing import Any

import jax
import jax.numpy as jnp


def is_known(value: Any) -> bool:
    """Whether a number is concrete, so that a branch on it can be taken while tracing."""
    return not isinstance(value, jax.core.Tracer)


def select(condition: Any, on_true: Any, on_false: Any) -> Any:
    """Picks between two whole results (arrays or pytrees of one structure).

    A known condition picks outright, and the other branch is dead code: this is what makes a
    specialised spec cost only what it uses. A traced one becomes `jnp.where`: a select and not
    a product, so that a non-finite value in the branch not taken stays out of the result.
    """
    if is_known(condition):
        return on_true if condition else on_false
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), on_true, on_false)
