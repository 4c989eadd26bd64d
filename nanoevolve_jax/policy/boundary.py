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
    """Returns `total_steps` if it is a whole number of at least 1; traced values pass unchecked.

    Raises:
      ValueError: If it is anything else.
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

    Raises:
      TypeError: Naming the first leaf that is not.
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
    """Checks that every leaf of a tree has two axes or more.

    Raises:
      ValueError: Naming the first leaf that has fewer.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if np.ndim(leaf) < 2:
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} must be a matrix of shape "
                f"[..., inputs, outputs], got shape {np.shape(leaf)}"
            )


def only_updated(params: Any, updates: Any) -> Any:
    """Returns the parameters without leaves that have no update, such as a module's functions.

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
    """Returns a loss of one element as float32[].

    Raises:
      ValueError: If it has more elements or none.
    """
    if np.size(value) != 1:
        raise ValueError(f"value must be the loss, a scalar, got shape {np.shape(value)}")
    return jnp.asarray(value, jnp.float32).reshape(())


def at_boundary(
    make: Callable[..., optax.GradientTransformationExtraArgs], *settings: Any
) -> optax.GradientTransformationExtraArgs:
    """Makes a transform for matrices accept what optax.adamw accepts.

    Args:
      make: Function from the settings to a transform whose `update` takes `value`. The transform
        sees one dtype per matrix, that of gradient and parameter promoted, and a float32[] loss.
      *settings: Numbers, schedules or trees of them; arrays among them may be traced.

    Returns:
      A transform that keeps the dtype of every leaf of its state, does nothing to a tree without
      entries, and works under meshes with Explicit axes.
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
    """Returns a tree with the dtypes of another tree of its structure."""
    return jax.tree.map(lambda x, y: jnp.asarray(x, jnp.result_type(y)), tree, like)


def in_auto_mode(function: Any, like: Any, arguments: tuple[Any, ...]) -> Any:
    """Calls a function whose operations XLA may partition, whatever the type of the mesh axes.

    Args:
      function: Takes `arguments`.
      like: Tree of arrays with the structure and the shardings of the result.
      arguments: Trees of arrays; their axes may be sharded over Explicit mesh axes.
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
