"""From the text of an answer to new source.

An answer holds SEARCH/REPLACE blocks, or code blocks with whole functions. What is parsed is never
run, and is not yet judged: that is the jail's work.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nanoevolve_jax.codegen.validation.parsing import parse

MAX_BYTES = 100_000
"""Of an answer; nothing that a slot needs is nearly as long."""

LONGEST_QUOTE = 80
"""Characters of an answer in a message; messages stand in books and on screens."""

_SEARCH = re.compile(r"<{5,9} ?SEARCH")
_DIVIDER = re.compile(r"={5,9}")
_REPLACE = re.compile(r">{5,9} ?REPLACE")
_FENCE = re.compile(r" {0,3}(```+|~~~+)[ \t]*([\w+-]*)[^`\n]*")
_PYTHON = ("", "python", "py", "python3")


class EditError(ValueError):
    """An answer that gives no new source; the message is for whoever answered."""


class Block(NamedTuple):
    """One SEARCH/REPLACE block, as lines."""

    search: tuple[str, ...]
    replace: tuple[str, ...]


def apply(answer: str, source: str, slot: str) -> str:
    """The source after an answer's edits.

    Args:
      answer: SEARCH/REPLACE blocks, in code blocks or not; or code blocks whose functions and
        constants replace those of the same name, and are added where there is none.
      source: what is edited.
      slot: the name of the function that the source must define.

    Raises:
      EditError: if the edits cannot be applied, break the syntax or change nothing.
    """
    if len(answer.encode(errors="replace")) > MAX_BYTES:
        raise EditError(f"the answer is longer than {MAX_BYTES} bytes")
    lines = answer.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    blocks = list(_blocks(lines))
    edited = source
    if blocks:
        for number, block in enumerate(blocks, 1):
            edited = _replaced(edited, block, number)
    else:
        pieces = [code for language, code in _fenced(lines) if language in _PYTHON]
        if not pieces:
            raise EditError("the answer has no SEARCH/REPLACE block and no code block")
        edited = _merged(source, pieces, slot)
    tree = _parsed(edited, "the edited source")
    if slot not in _definitions(tree):
        raise EditError(f"the edited source has no function named {slot}")
    if _same(tree, _parsed(source, "the source")):
        raise EditError("the edits change nothing but comments or layout")
    return edited.strip("\n") + "\n"


def _blocks(lines: Sequence[str]) -> Iterator[Block]:
    """The SEARCH/REPLACE blocks of an answer."""
    parts: list[list[str]] = []  # none outside a block; then its two sides as far as read
    for line in lines:
        mark = line.strip()
        if _SEARCH.fullmatch(mark):
            if parts:
                raise EditError("a SEARCH begins inside a block; end that with >>>>>>> REPLACE")
            parts = [[]]
        elif len(parts) == 1 and _DIVIDER.fullmatch(mark):
            parts.append([])
        elif parts and _REPLACE.fullmatch(mark):
            if len(parts) == 1:
                raise EditError("a SEARCH has no line ======= before its >>>>>>> REPLACE")
            yield Block(tuple(parts[0]), tuple(parts[1]))
            parts = []
        elif parts:
            parts[-1].append(line)
    if parts:
        raise EditError("the last SEARCH/REPLACE block does not end with >>>>>>> REPLACE")


def _replaced(source: str, block: Block, number: int) -> str:
    """The source with a block applied; blanks at the ends of lines do not count."""
    lines = source.split("\n")
    wanted = [line.rstrip() for line in block.search]
    if not any(wanted):
        raise EditError(f"the SEARCH of block {number} is empty; quote the lines to be replaced")
    known = [line.rstrip() for line in lines]
    count = len(wanted)
    places = [i for i in range(len(known) - count + 1) if known[i : i + count] == wanted]
    first = next(line.strip() for line in wanted if line)[:LONGEST_QUOTE]
    if not places:
        raise EditError(
            f"the SEARCH of block {number} (at {first!r}) is not in the source; quote whole lines "
            "exactly, with their indentation"
        )
    if len(places) > 1:
        raise EditError(
            f"the SEARCH of block {number} (at {first!r}) is in the source {len(places)} times; "
            "quote more lines, so that it is there once"
        )
    start = places[0]
    return "\n".join([*lines[:start], *block.replace, *lines[start + count :]])


def _fenced(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Language and text of every code block."""
    fence, language, inside = "", "", []
    for line in lines:
        match = _FENCE.fullmatch(line)
        if not fence:
            if match:
                fence, language, inside = match[1], match[2].lower(), []
        elif line.strip().startswith(fence) and not line.strip().strip(fence[0]):
            yield language, "\n".join(inside) + "\n"
            fence = ""
        else:
            inside.append(line)
    if fence:
        raise EditError("the last code block is not closed")


def _merged(source: str, pieces: Sequence[str], slot: str) -> str:
    """The source with the functions and constants of code blocks in the place of its own."""
    given: dict[str, str] = {}
    functions = set()
    for piece in pieces:
        tree = _parsed(piece, "a code block")
        for node in tree.body:
            name = _name(node)
            if name is None:
                raise EditError(
                    f"line {node.lineno} of a code block is {_line(piece, node)!r}; allowed: "
                    "functions, and constants that are literals"
                )
            if name in given:
                raise EditError(
                    f"the code blocks define {name[:LONGEST_QUOTE]} twice; give it once"
                )
            given[name] = _text(piece, node)
            if isinstance(node, ast.FunctionDef):
                functions.add(name)
    known = _definitions(_parsed(source, "the source"))
    if not functions & (known.keys() | {slot}) and not given.keys() & known.keys():
        found = ", ".join(given)[:LONGEST_QUOTE] or "nothing"
        raise EditError(f"the code blocks define {found}; give {slot} or one of its helpers")
    return _with(source, known, given, slot)


def _with(source: str, known: dict[str, ast.stmt], given: dict[str, str], slot: str) -> str:
    """The source with definitions replaced by name; new ones come before the slot's function."""
    lines = source.split("\n")
    added = "\n\n\n".join(text for name, text in given.items() if name not in known)
    for name, node in sorted(known.items(), key=lambda item: -item[1].lineno):
        start, end = _first_line(node), node.end_lineno
        text = given.get(name, "\n".join(lines[start:end]))
        if name == slot and added:
            text = f"{added}\n\n\n{text}"
        lines[start:end] = text.split("\n")
    return "\n".join(lines) if slot in known else "\n".join([*lines, added])


def _parsed(code: str, what: str) -> ast.Module:
    try:
        return parse(code)
    except SyntaxError as error:
        raise EditError(f"{what} has a syntax error in line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError):  # zero bytes; too deep
        raise EditError(f"{what} cannot be parsed: it is nested too deeply or is no text") from None


def _same(tree: ast.Module, other: ast.Module) -> bool:
    try:
        return ast.dump(tree) == ast.dump(other)
    except RecursionError:
        raise EditError("the edited source is nested too deeply") from None


def _definitions(tree: ast.Module) -> dict[str, ast.stmt]:
    """Functions and constants at the top of a module."""
    return {name: node for node in tree.body if (name := _name(node))}


def _name(node: ast.stmt) -> str | None:
    """What a statement defines, if it is a function or a constant."""
    if isinstance(node, ast.FunctionDef):
        return node.name
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        target = node.target
    else:
        return None
    return target.id if isinstance(target, ast.Name) else None


def _first_line(node: ast.stmt) -> int:
    """The index of a statement's first line, its decorators included."""
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)]) - 1


def _text(code: str, node: ast.stmt) -> str:
    return "\n".join(code.split("\n")[_first_line(node) : node.end_lineno])


def _line(code: str, node: ast.stmt) -> str:
    return code.split("\n")[node.lineno - 1].strip()[:LONGEST_QUOTE]
