"""Rewritten functions as they stand in an exported file.

Each is there with its helpers in a scope of its own, so that no name of theirs can clash with one
of the file or of another function.
"""

import ast
import textwrap
from collections.abc import Collection, Sequence
from typing import NamedTuple

from nanoevolve_jax.policy.certified import Code

_INDENT = "    "
_MODULES = ("math", "lax")  # that a source may name and no other file imports


class Piece(NamedTuple):
    """One rewritten function."""

    slot: str
    certificate: str  # its id
    body: str  # its source, indented once


def pieces_of(code: Code, slots: Collection[str]) -> tuple[Piece, ...]:
    """The functions of some slots; sources are parsed and written again, so that each is a block.

    Args:
      code: what is rewritten; its sources are in the language of `codegen.validation`.
      slots: those that appear in the file.
    """
    return tuple(
        Piece(f.slot, f.id, textwrap.indent(ast.unparse(ast.parse(f.source)), _INDENT))
        for f in code.functions
        if f.slot in slots
    )


def imports_of(code: Code, pieces: Sequence[Piece]) -> tuple[str, ...]:
    """Modules, out of `math` and `lax`, that the functions name."""
    shown = {piece.slot for piece in pieces}
    used = {
        node.id
        for f in code.functions
        if f.slot in shown
        for node in ast.walk(ast.parse(f.source))
        if isinstance(node, ast.Name)
    }
    return tuple(name for name in _MODULES if name in used)
