"""Labels the parameters that a policy updates, by their shapes and the words of their paths."""

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


# Words that name an output layer wherever they occur in a path.
_OUTPUTS = _word_set(
    "classifier classification readout vocab unemb lmhead clshead mlmhead logit logits"
)
# Words that name an embedding unless they describe another layer: `embed_proj` is a projection.
_EMBEDDINGS = _word_set("emb embs embd wte wpe codebook")
_PROJECTIONS = _word_set("proj projection projector mlp ffn")
# Words that name an embedding at the end of a component, or before a word for a table.
_LOOKUPS = _word_set("pos position positions positional pe tok token tokens prompt prompts")
_TABLES = _word_set("enc encoding encodings table tables")
# A head is an output layer unless it is one of the heads of an attention layer.
_HEADS = frozenset(("head", "heads"))
_ATTENTION = _word_set("attention attn mha mhsa mqa gqa multihead sa")
_COUNTED_HEADS = _word_set("multi per num n kv q k v qkv query key talking") | _ATTENTION
_OF_HEADS = _word_set("dim dims size count mix mixing mixer norm gate") | (
    _ATTENTION | _PROJECTIONS
)
# A first component of these words, and none but those of layers, is an end of the model.
_OUTERMOST = _word_set("input inputs out output outputs final")
_LAYERS = _word_set("layer linear dense fc proj projection")
# Words that name vectors: with a leading axis for layers or heads they have two axes or more.
_VECTORS = _word_set("bias biases scale scales gain gamma beta offset")
_NORMS = _word_set("norm norms layernorm rmsnorm batchnorm groupnorm ln rms")
# Components that hold arrays and say nothing about them.
_HOLDERS = frozenset(["params", "value", "raw_value"])


def labels(params: Any, stacked: Collection[str] = ()) -> Any:
    """Labels every array `matrix` or `other`, as `ne.optimizer` does by default.

    A matrix is a floating-point array of two axes that is neither an embedding, nor an output
    layer, nor a bias or scale (https://kellerjordan.github.io/posts/muon/ says why embeddings and
    output layers stay with AdamW). The words of an array's path decide; words end at `_`, `.`,
    digits and changes of case, so that `tok_emb`, `posEmb1` and `lm_head` are recognised and
    `header` is not. A module whose class name ends in `Embedding` counts as an embedding.

    Arrays of three axes or more are convolutions or attention kernels in some libraries and stacks
    of matrices in others, which their shape does not tell, so they are `other` by default.

    Args:
      params: Tree of arrays.
      stacked: Words that name stacked layers, such as `layers` or `layer_stack`. Each word found
        in an array's path accounts for one leading axis. What remains is a matrix if it has two
        axes or more, and belongs to AdamW if it is a vector.

    Returns:
      A tree like `params` with a label for every array.
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
    """Whether any array of two axes or more looks like an embedding or an output layer."""
    leaves = jax.tree_util.tree_leaves_with_path(
        params, is_leaf=lambda node: node is not params and _is_embedding(node)
    )
    return any(
        _is_embedding(leaf) or (jnp.ndim(leaf) > 1 and names_an_end(path_words(path)))
        for path, leaf in leaves
    )


def is_stacked(path: Sequence[Any], word: str) -> bool:
    """Whether a word occurs in a path of `jax.tree_util`; singular and plural are one word."""
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
    """Whether the words of a path name an embedding or an output layer."""
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
    """Whether a word, among the others of its component, names an embedding or an output layer."""
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
    """Whether the array is a bias or scale, or belongs to a normalisation layer."""
    if not components:
        return False
    layer = {word for words in components[-2:] for word in words}
    return bool(_VECTORS.intersection(components[-1]) or _NORMS.intersection(layer))


def _is_embedding(node: Any) -> bool:
    """Whether a node is a module whose class name ends in a word such as `Embedding`."""
    words = _words(type(node).__name__)
    return bool(words) and "embed" in words[-1]
