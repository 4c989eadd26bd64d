"""Reports which parameters a policy updates, and warns about doubtful cases."""

import warnings
from collections.abc import Collection
from typing import Any

import jax
import numpy as np

from nanoevolve_jax.policy.labels import MATRIX, has_end, is_stacked, labels


def summary_of(params: Any, labelled: Any) -> str:
    """Returns one line about the arrays that the policy updates and those that AdamW updates.

    Args:
      params: Tree of arrays.
      labelled: Tree of labels, or a prefix of such a tree.

    Returns:
      For each label, the number of arrays and of parameters, and the names of those arrays of two
      or more axes that the policy does not update.
    """
    by_label: dict[str, list[tuple[Any, Any]]] = {MATRIX: []}
    labelled = jax.tree.leaves(jax.tree.broadcast(labelled, params))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for label, leaf in zip(labelled, leaves, strict=True):
        by_label.setdefault(label, []).append(leaf)
    parts = []
    for label, members in by_label.items():
        entries = sum(np.size(leaf) for _, leaf in members)
        named = [
            jax.tree_util.keystr(path, simple=True, separator=".")
            for path, leaf in members
            if label != MATRIX and np.ndim(leaf) > 1
        ]
        names = f" ({', '.join(named)})" if named else ""
        arrays = f"{len(members)} array{'s' * (len(members) != 1)}"
        parts.append(f"{label}: {arrays}, {entries:,} parameters{names}")
    return "; ".join(parts)


def warn_of_doubts(params: Any, stacked: Collection[str]) -> None:
    """Warns if the default labels of parameters are probably not the intended ones.

    Args:
      params: Tree of arrays.
      stacked: Words that name stacked layers, see `ne.labels`.
    """
    paths = [
        path for path, leaf in jax.tree_util.tree_leaves_with_path(params) if np.ndim(leaf) > 1
    ]
    has_matrix = MATRIX in jax.tree.leaves(labels(params, stacked))
    if has_matrix and not has_end(params):
        _warn(
            "no array looks like an embedding or an output layer, so every matrix gets the policy; "
            "ne.labels(params) shows the routing, and labels= changes it"
        )
    for word in stacked:
        if not any(is_stacked(path, word) for path in paths):
            _warn(f"stacked={word!r} occurs in the path of no array of two axes or more")


def _warn(message: str) -> None:
    warnings.warn(f"ne.optimizer: {message}", UserWarning, stacklevel=4)
