"""Checks and converts the arguments that a training loop passes to a policy.

The code inside a policy may therefore assume that gradients and state have fixed dtypes, the loss
is a float32 scalar, there is at least one matrix entry, and no mesh axis is of type Explicit.
"""

import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType

from nanoevolve_jax.policy.select import is_known


def require_horizon(total_steps: Any) -> Any:
    """Checks that a number of steps is an integer of at least 1.

    Args:
      total_steps: Number of steps of the run; a number, an array of one element or a traced scalar.

    Returns:
      The number, unchanged. A traced value is returned without a check.

    Raises:
      ValueError: If the number is not an integer or is less than 1.
    """
    if not is_known(total_steps):
        return total_steps
    value = total_steps.item() if np.ndim(total_steps) == 0 and _is_array(total_steps) else None
    value = total_steps if value is None else value
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not np.isfinite(value) or value < 1 or value != int(value):
        raise ValueError(f"total_steps must be a whole number of at least 1, got {total_steps!r}")
    return value if isinstance(total_steps, np.generic) else total_steps


def require_arrays(params: Any) -> None:
    """Checks that every leaf of a tree is a numeric array or a number.

    Args:
      params: Tree of parameters.

    Raises:
      TypeError: If a leaf is not numeric. The message names the first such leaf.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = getattr(leaf, "dtype", None)
        numeric = isinstance(leaf, numbers.Number) if dtype is None else _is_numeric(dtype)
        if not numeric:
            shown = type(leaf).__name__ if dtype is None else f"an array of {dtype}"
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} must be a numeric array, got {shown}; "
                "filter the model first, as in eqx.filter(model, eqx.is_inexact_array)"
            )


def require_matrices(params: Any) -> None:
    """Checks that every leaf of a tree has at least two axes.

    Args:
      params: Tree of parameters.

    Raises:
      ValueError: If a leaf has fewer axes. The message names the first such leaf.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if np.ndim(leaf) < 2:
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} must be a matrix of shape "
                f"[..., inputs, outputs], got shape {np.shape(leaf)}"
            )


def only_updated(params: Any, updates: Any) -> Any:
    """Removes the parameters that have no update, such as a module's functions.

    Args:
      params: Tree of parameters.
      updates: Tree with the structure of `params`; None marks a leaf without an update.

    Returns:
      The parameters, with None in place of every leaf that has no update.

    Raises:
      ValueError: If a floating-point array has no update.
    """

    def keep(path, update, param):
        if update is not None:
            return param
        if jnp.issubdtype(getattr(param, "dtype", bool), np.inexact):
            raise ValueError(
                f"the gradient of params{jax.tree_util.keystr(path)} must be an array, got None; "
                "remove the parameter from params, or exclude it with optax.masked"
            )
        return None

    return jax.tree_util.tree_map_with_path(keep, updates, params, is_leaf=lambda x: x is None)


def scalar_loss(value: Any) -> jax.Array:
    """Converts a loss to a float32 scalar.

    Args:
      value: Loss; a number or an array of one element.

    Returns:
      The loss; float32[].

    Raises:
      ValueError: If the loss does not have exactly one element.
    """
    if np.size(value) != 1:
        raise ValueError(f"value must be the loss, a scalar, got shape {np.shape(value)}")
    return jnp.asarray(value, jnp.float32).reshape(())


def at_boundary(
    make: Callable[..., optax.GradientTransformationExtraArgs], *settings: Any
) -> optax.GradientTransformationExtraArgs:
    """Wraps a transform for matrices so that it accepts the same arguments as `optax.adamw`.

    Args:
      make: Function that maps the settings to a transform whose `update` takes `value`. Every
        gradient that the transform receives has the promoted dtype of gradient and parameter. The
        loss is a float32 scalar.
      *settings: Numbers, schedules, or trees of numbers and schedules. Arrays may be traced.

    Returns:
      A transform that keeps the dtype of every leaf of its state, returns a tree without entries
      unchanged, and works under meshes with Explicit axes.
    """
    leaves, treedef = jax.tree.flatten(settings)
    traced = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)}

    def transform(traced):
        return make(*treedef.unflatten([traced.get(i, leaf) for i, leaf in enumerate(leaves)]))

    def init_fn(params):
        require_matrices(params)
        return transform(traced).init(params)

    def update_fn(updates, state, params=None, *, value=None, **extra_args):
        if params is None:
            raise ValueError("params must be the parameters, which the policy senses, got None")
        if not any(np.size(leaf) for leaf in jax.tree.leaves(updates)):
            return updates, state
        value = None if value is None else scalar_loss(value)
        updates = jax.tree.map(lambda g, p: g.astype(jnp.result_type(g, p)), updates, params)
        arrays = {name: x for name, x in extra_args.items() if _is_array(x)}
        others = {name: x for name, x in extra_args.items() if name not in arrays}

        def update(updates, state, params, value, arrays, traced):
            out, following = transform(traced).update(
                updates, state, params, value=value, **others, **arrays
            )
            return cast_like(out, updates), cast_like(following, state)

        arguments = (updates, state, params, value, arrays, traced)
        return in_auto_mode(update, (updates, state), arguments)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def cast_like(tree: Any, like: Any) -> Any:
    """Casts a tree to the dtypes of another tree.

    Args:
      tree: Tree of arrays.
      like: Tree of arrays with the same structure and the desired dtypes.

    Returns:
      The values of `tree` in the dtypes of `like`.
    """
    return jax.tree.map(lambda x, y: jnp.asarray(x, jnp.result_type(y)), tree, like)


def in_auto_mode(function: Any, like: Any, arguments: tuple[Any, ...]) -> Any:
    """Calls a function with all Explicit mesh axes in Auto mode.

    XLA chooses how to partition the operations of the function.

    Args:
      function: Function to call with `arguments`.
      like: Tree of arrays with the structure and the shardings of the result.
      arguments: Trees of arrays. Their axes may be sharded over Explicit mesh axes.

    Returns:
      The result of the function, with the shardings of `like`.
    """
    shardings = [jax.typeof(leaf).sharding for leaf in jax.tree.leaves(arguments)]
    meshes = [x.mesh for x in shardings if AxisType.Explicit in x.mesh.axis_types]
    if not meshes:
        return function(*arguments)
    explicit = [
        name
        for name, kind in zip(meshes[0].axis_names, meshes[0].axis_types, strict=True)
        if kind == AxisType.Explicit
    ]
    results = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, like)
    with jax.sharding.use_abstract_mesh(meshes[0]):
        mapped = jax.sharding.auto_axes(function, axes=tuple(explicit), out_sharding=results)
        return mapped(*arguments)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.generic | np.ndarray | jax.Array)


def _is_numeric(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, np.bool_)
