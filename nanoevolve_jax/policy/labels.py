"""Labels that decide which parameters a policy updates, from their shapes and paths."""

import re
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

MATRIX = "matrix"
OTHER = "other"

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def _word_set(text: str) -> frozenset[str]:
    return frozenset(_words(text))


# Words that name an output layer at any place in a path.
_OUTPUTS = _word_set(
    "classifier classification readout vocab unemb lmhead clshead mlmhead logit logits"
)
# Words that name an embedding, except before a word for another layer: `embed_proj` is a
# projection.
_EMBEDDINGS = _word_set("emb embs embd wte wpe codebook")
_PROJECTIONS = _word_set("proj projection projector mlp ffn")
# Words that name an embedding at the end of a path component or before a word for a table.
_LOOKUPS = _word_set("pos position positions positional pe tok token tokens prompt prompts")
_TABLES = _word_set("enc encoding encodings table tables")
# Words for an output layer, except where they refer to the heads of an attention layer.
_HEADS = frozenset(("head", "heads"))
_ATTENTION = _word_set("attention attn mha mhsa mqa gqa multihead sa")
_COUNTED_HEADS = _word_set("multi per num n kv q k v qkv query key talking") | _ATTENTION
_OF_HEADS = _word_set("dim dims size count mix mixing mixer norm gate") | (
    _ATTENTION | _PROJECTIONS
)
# The first component of a path names an embedding or an output layer if it contains a word of
# _OUTERMOST, and otherwise only words of _LAYERS.
_OUTERMOST = _word_set("input inputs out output outputs final")
_LAYERS = _word_set("layer linear dense fc proj projection")
# Words that name vectors. Vectors stacked over layers or heads have at least two axes.
_VECTORS = _word_set("bias biases scale scales gain gamma beta offset")
_NORMS = _word_set("norm norms layernorm rmsnorm batchnorm groupnorm ln rms")
# Path components that do not describe the array that they contain.
_HOLDERS = frozenset(["params", "value", "raw_value"])


def labels(params: Any, stacked: Collection[str] = ()) -> Any:
    """Labels every array `matrix` or `other`, as `ne.optimizer` does by default.

    A matrix is a floating-point array of two axes that is neither an embedding, an output layer, a
    bias nor a scale. https://kellerjordan.github.io/posts/muon/ explains why AdamW updates
    embeddings and output layers. They are recognised by the words of an array's path. Words end at
    `_`, `.`, digits and changes of case, so `tok_emb`, `posEmb1` and `lm_head` are recognised, but
    `header` is not. A module whose class name ends in `Embedding` is an embedding.

    Arrays of three or more axes are labelled `other` by default, because their shape does not show
    whether they are convolutions, attention kernels or stacks of matrices.

    Args:
      params: Tree of arrays.
      stacked: Words that name stacked layers, such as `layers` or `layer_stack`. Each of these
        words in an array's path accounts for one leading axis of the array. An array with two or
        more further axes is a matrix, and one with fewer is labelled `other`.

    Returns:
      A tree with the structure of `params` and a label for every array.
    """

    def label(path, node):
        if node is not params and _is_embedding(node):
            return jax.tree.map(lambda _: OTHER, node)
        components = path_words(path)
        layer_axes = sum(is_stacked(path, word) for word in stacked)
        axes = getattr(node, "ndim", 0) - layer_axes
        floating = jnp.issubdtype(getattr(node, "dtype", bool), jnp.floating)
        if not floating or axes < 2 or names_an_end(components) or _names_a_vector(components):
            return OTHER
        return MATRIX if axes == 2 or layer_axes else OTHER

    def is_leaf(node):
        return node is not params and _is_embedding(node)

    return jax.tree_util.tree_map_with_path(label, params, is_leaf=is_leaf)


default_labels = labels


def has_end(params: Any) -> bool:
    """Returns whether any array of two or more axes looks like an embedding or an output layer."""
    leaves = jax.tree_util.tree_leaves_with_path(
        params, is_leaf=lambda node: node is not params and _is_embedding(node)
    )
    return any(
        _is_embedding(leaf) or (jnp.ndim(leaf) > 1 and names_an_end(path_words(path)))
        for path, leaf in leaves
    )


def is_stacked(path: Sequence[Any], word: str) -> bool:
    """Returns whether a path contains a word, in the singular or the plural.

    Args:
      path: Path of `jax.tree_util`.
      word: One or more words, such as `layers` or `layer_stack`.
    """
    wanted = [part.removesuffix("s") for part in _words(word)]
    for component in path_words(path):
        singular = [part.removesuffix("s") for part in component]
        starts = range(len(singular) - len(wanted) + 1)
        if wanted and any(singular[i : i + len(wanted)] == wanted for i in starts):
            return True
    return False


def path_words(path: Sequence[Any]) -> list[list[str]]:
    """Returns the lower-case words of each component of a path of `jax.tree_util`."""
    names = (jax.tree_util.keystr((key,), simple=True) for key in path)
    parts = [part for name in names for part in re.split(r"[/.]", name)]
    components = [_words(part) for part in parts if part not in _HOLDERS]
    return [words for words in components if words]


def names_an_end(components: Sequence[Sequence[str]]) -> bool:
    """Returns whether a path names an embedding or an output layer.

    Args:
      components: Words of each component of the path, see `path_words`.
    """
    first = set(components[0]) if components else set()
    if first & _OUTERMOST and first <= _OUTERMOST | _LAYERS:
        return True
    return any(
        _is_end(word, words[:j], words[j + 1 :], components[:i])
        for i, words in enumerate(components)
        for j, word in enumerate(words)
    )


def _is_end(
    word: str,
    preceding: Sequence[str],
    following: Sequence[str],
    parents: Sequence[Sequence[str]],
) -> bool:
    """Returns whether a word names an embedding or an output layer in the context of its path."""
    if word in _HEADS:
        context = preceding or [word for words in parents for word in words]
        counted = _COUNTED_HEADS if preceding else _ATTENTION
        return not counted.intersection(context) and not _OF_HEADS.intersection(following)
    if word in _LOOKUPS:
        return not following or following[0] in _TABLES
    if word in _OUTPUTS or re.search("unembed|logits", word):
        return True
    return ("embed" in word or word in _EMBEDDINGS) and not _PROJECTIONS.intersection(following)


def _names_a_vector(components: Sequence[Sequence[str]]) -> bool:
    """Returns whether a path names a bias, a scale or an array of a normalisation layer."""
    if not components:
        return False
    layer = {word for words in components[-2:] for word in words}
    return bool(_VECTORS.intersection(components[-1]) or _NORMS.intersection(layer))


def _is_embedding(node: Any) -> bool:
    """Returns whether a node is a module whose class name ends in a word such as `Embedding`."""
    words = _words(type(node).__name__)
    return bool(words) and "embed" in words[-1]
