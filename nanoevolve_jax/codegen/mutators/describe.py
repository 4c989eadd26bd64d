"""The contract of a slot in words, from the descriptions in `policy.slots`."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from nanoevolve_jax.policy.slots import SLOTS, Leaf


class Described(NamedTuple):
    """One argument or result."""

    name: str
    form: str  # its dtype and shape
    meaning: str


_SCOPES = {
    "matrix": "Change the mathematics of the matrix update: momentum, orthogonalisation, scaling, "
    "normalisation.",
    "gating": "Change how the state of training steers the optimizer.",
    "routing": "Change which matrices get which treatment: branch in Python on the shape of "
    "`gradient`, which is known while the function is traced. All shapes go through one function.",
}


def arguments_of(slot: str) -> tuple[Described, ...]:
    """Returns the arguments of a slot's function, one row per array."""
    return tuple(row for name, tree in SLOTS[slot].inputs.items() for row in _rows(name, tree))


def results_of(slot: str) -> tuple[Described, ...]:
    """Returns the results of a slot's function, in order."""
    return tuple(
        _row(name, leaf, "values outside are clipped" if leaf.low is not None else "")
        for name, leaf in SLOTS[slot].named_results()
    )


def outside_of(slot: str) -> str:
    """Returns what is done before and after a slot's function."""
    return SLOTS[slot].outside


def aim_of(scope: str) -> str:
    """Returns the purpose of a campaign of a scope."""
    return _SCOPES[scope]


def signature_of(slot: str) -> str:
    """Returns the first line of a slot's function."""
    return f"def {slot}({', '.join(SLOTS[slot].parameters)}):"


def _rows(name: str, tree: Any) -> Iterator[Described]:
    if isinstance(tree, Leaf):
        yield _row(name, tree)
    elif hasattr(tree, "_fields"):
        for field, child in tree._asdict().items():
            yield from _rows(f"{name}.{field}", child)
    else:
        row = _row(name, tree[0])
        yield row._replace(form=f"tuple of {len(tree)} {tree[0].form}s")


def _row(name: str, leaf: Leaf, note: str = "") -> Described:
    reach = "" if leaf.low is None else f"from {leaf.low:g} to {leaf.high:g}"
    return Described(name, leaf.form, "; ".join(filter(None, (leaf.meaning, reach, note))))
