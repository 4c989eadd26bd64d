"""Runs a transform on stacks of same-shaped matrices, while its state stays parameter-shaped.

Forty matrices of four shapes need four kernels per operation instead of forty. That takes a fifth
of the compile time and fills vectors on small models. The state can be saved, sharded and mapped
like that of any optax transform.

Several devices can share the stacks: each updates some of the matrices, as in NanoChat.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec


@jax.tree_util.register_pytree_node_class
class Stacks:
    """A tree's leaves grouped by shape, each group stacked on a new first axis."""

    def __init__(self, arrays: Sequence[jax.Array]):
        self.arrays = tuple(arrays)

    def tree_flatten(self):
        """Returns the arrays as children of the pytree."""
        return self.arrays, None

    @classmethod
    def tree_unflatten(cls, aux, arrays):
        """Returns stacks with other arrays."""
        del aux
        return cls(arrays)


def group_by_shape(leaves: Sequence[Any]) -> list[list[int]]:
    """Returns the positions of the leaves of each shape, in order of first appearance.

    Leaves without entries are in no group.
    """
    groups: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        if leaf.size:
            groups.setdefault(leaf.shape, []).append(i)
    return list(groups.values())


def over_stacks(
    inner: optax.GradientTransformationExtraArgs, axis: str | None = None
) -> optax.GradientTransformationExtraArgs:
    """Passes updates, parameters and parameter-shaped state to `inner` as `Stacks`.

    Matrices of one shape and different dtypes share a stack of the promoted dtype; `at_boundary`
    restores the dtypes. Matrices without entries are left as they are.

    Args:
      inner: Transform that treats every matrix `[..., inputs, outputs]` alike, and whose state
        consists of scalars and of whole trees shaped like the parameters.
      axis: Name of an Auto axis of the surrounding mesh whose devices share the matrices of each
        stack.

    Returns:
      The same transform on the original trees.
    """

    def update_fn(updates, state, params=None, **extra_args):
        leaves, treedef = jax.tree.flatten(updates)
        if len(leaves) < 2:  # one leaf has the structure of any scalar, and needs no stack
            return inner.update(updates, state, params, **extra_args)
        groups = group_by_shape(leaves)

        def stack(tree):
            xs = jax.tree.leaves(tree)
            arrays = [jnp.stack([xs[i] for i in group]) for group in groups]
            if axis is not None:  # XLA pads a stack that does not divide evenly
                arrays = jax.lax.with_sharding_constraint(arrays, PartitionSpec(axis))
            return Stacks(arrays)

        def unstack(stacks, like):
            xs = jax.tree.leaves(like)
            for group, array in zip(groups, stacks.arrays, strict=True):
                for k, i in enumerate(group):
                    xs[i] = array[k]
            return treedef.unflatten(xs)

        def is_tree(x):
            return jax.tree.structure(x) == treedef

        stacked_state = jax.tree.map(
            lambda x: stack(x) if is_tree(x) else x, state, is_leaf=is_tree
        )
        out, new_state = inner.update(
            stack(updates),
            stacked_state,
            None if params is None else stack(params),
            **extra_args,
        )
        restored = jax.tree.map(
            lambda x, old: unstack(x, old) if isinstance(x, Stacks) else x,
            new_state,
            state,
            is_leaf=lambda x: isinstance(x, Stacks),
        )
        return unstack(out, updates), restored

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)
