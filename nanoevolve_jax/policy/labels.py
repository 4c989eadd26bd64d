"""Which parameters are matrices that a policy may have, from their shapes and names alone."""

import re
from collections.abc import Collection
from typing import Any

import jax

MATRIX = "matrix"
OTHER = "other"
_EMBEDDINGS = ("embed", "wte", "wpe")
# A head gives the output; `multi_head_attention` is none.
_HEAD = re.compile(r"(?<!multi)(?<!multi_)heads?_?\d*|logits_?\d*")


def default_labels(params: Any, stacked: Collection[str] = ()) -> Any:
    """Labels every array `matrix` or `other`.

    Matrices are arrays of two axes whose path names neither an embedding nor an output head
    (https://kellerjordan.github.io/posts/muon/ says why those stay with AdamW). Arrays of more
    axes are convolutions or attention kernels in some libraries and stacks of matrices in others,
    which their shape does not tell.

    Args:
      params: a tree of arrays.
      stacked: words; an array of more axes whose path has one of them is a stack of matrices.
    """

    def label(path, leaf):
        axes = getattr(leaf, "ndim", 0)
        parts = re.split(r"[^0-9a-z_]+", jax.tree_util.keystr(path).lower())
        if axes < 2 or any(_names_an_end(part) for part in parts):
            return OTHER
        is_stack = any(word.lower() in part for word in stacked for part in parts)
        return MATRIX if axes == 2 or is_stack else OTHER

    return jax.tree_util.tree_map_with_path(label, params)


def _names_an_end(part: str) -> bool:
    """Whether a part of a path names where a model begins or ends."""
    if any(word in part for word in _EMBEDDINGS):
        return True
    found = _HEAD.search(part)
    return found is not None and found.end() == len(part)
