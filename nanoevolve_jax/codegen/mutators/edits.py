"""Applies the edits of an answer to a source.

The edits are SEARCH/REPLACE blocks or complete functions. This module parses the answer and never
runs it. The new source is validated later in the sandbox.
"""

import ast
from collections.abc import Sequence

from nanoevolve_jax.codegen.mutators.markup import (
    LONGEST_QUOTE,
    Block,
    EditError,
    blocks,
    code_blocks,
    plain,
    without_reasoning,
)
from nanoevolve_jax.codegen.validation.language import parse

MAX_BYTES = 100_000  # largest answer without its reasoning, in bytes; slots need far fewer
LONGEST_ANSWER = 4_000_000  # longest answer with its reasoning, in characters
GIVEN = {"jax": "jax", "jnp": "jax.numpy", "lax": "jax.lax", "math": "math"}
"""Modules by the name under which every source has them."""


def apply(answer: str, source: str, slot: str) -> str:
    """Returns the source after the edits of an answer have been applied.

    An answer has one of three forms:

    *   SEARCH/REPLACE blocks, inside or outside code blocks.
    *   Code blocks. Their functions and constants replace definitions with the same names, and
        definitions with new names are added.
    *   Python code without any markup, treated like a code block.

    Imports of modules that every source can use are removed, because they have no effect.

    Args:
      answer: Text of the answer. Reasoning in it is ignored.
      source: Source to edit.
      slot: Name of the function that the new source must define.

    Raises:
      EditError: If the edits cannot be applied, break the syntax or have no effect.
    """
    lines = _without_reasoning(answer).split("\n")
    edited = source
    number = 0
    for number, block in enumerate(blocks(lines), 1):
        edited = _replaced(edited, block, number)
    if not number:
        edited = _merged(source, _code(lines, slot), slot)
    edited = _without_imports(edited, _parsed(edited, "the edited source"))
    tree = _parsed(edited, "the edited source")
    if slot not in _definitions(tree):
        raise EditError(f"the edited source has no function named {slot}")
    if _same(tree, _parsed(source, "the source")):
        raise EditError("the edits change nothing but comments or layout")
    return edited.strip("\n") + "\n"


def _without_reasoning(answer: str) -> str:
    if len(answer) > LONGEST_ANSWER:
        raise EditError(f"the answer is longer than {LONGEST_ANSWER} characters")
    text = without_reasoning(plain(answer))
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise EditError(f"the answer is longer than {MAX_BYTES} bytes")
    return text


def _replaced(source: str, block: Block, number: int) -> str:
    """Returns the source with a block applied. Spaces at the ends of lines are ignored."""
    if not any(line.strip() for line in block.search):
        raise EditError(f"the SEARCH of block {number} is empty; quote the lines to be replaced")
    lines = source.split("\n")
    places = _places(lines, block)
    if not places and block.indent:  # the block may be indented, as in a list
        block = block.dedented()
        places = _places(lines, block)
    first = next(line.strip() for line in block.search if line.strip())[:LONGEST_QUOTE]
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
    start, end = places[0], places[0] + len(block.search)
    return "\n".join([*lines[:start], *(x.rstrip() for x in block.replace), *lines[end:]])


def _places(lines: Sequence[str], block: Block) -> list[int]:
    """Returns the indices of the lines at which the SEARCH of a block occurs in a source."""
    wanted = [line.rstrip() for line in block.search]
    known = [line.rstrip() for line in lines]
    count = len(wanted)
    return [i for i in range(len(known) - count + 1) if known[i : i + count] == wanted]


def _code(lines: Sequence[str], slot: str) -> list[str]:
    """Returns the Python code of an answer without SEARCH/REPLACE blocks."""
    fenced = list(code_blocks(lines))
    pieces = [code.text for code in fenced if code.is_python]
    unnamed = [code.text for code in fenced if not code.language]
    # If there are Python blocks, blocks without a language may contain formulas or output instead
    # of code.
    pieces += [code for code in unnamed if not pieces or _tree(code) is not None]
    text = "\n".join(lines)
    if not fenced and (tree := _tree(text)) is not None and slot in _definitions(tree):
        pieces = [text]
    if not pieces:
        raise EditError("the answer has no SEARCH/REPLACE block and no code block")
    return pieces


def _merged(source: str, pieces: Sequence[str], slot: str) -> str:
    """Returns the source with definitions replaced by, or added from, pieces of code."""
    known = _definitions(_parsed(source, "the source"))
    given: dict[str, str] = {}
    quotes = False  # whether a piece repeats a definition of the source unchanged
    for piece in pieces:
        lines = piece.split("\n")
        for node in _parsed(piece, "a code block").body:
            if _imports_given(node) or _is_docstring(node):
                continue
            name = _name(node)
            if name is None:
                line = lines[node.lineno - 1].strip()[:LONGEST_QUOTE]
                raise EditError(
                    f"a code block must contain functions and constants that are literals, got "
                    f"{line!r} in line {node.lineno}"
                )
            if name in known and _same(node, known[name]):
                quotes = True
                continue
            if name in given:
                short = name[:LONGEST_QUOTE]
                raise EditError(f"the code blocks define {short} twice; give it once")
            given[name] = "\n".join(lines[_first_line(node) : node.end_lineno])
    if not quotes and not given.keys() & {slot, *known}:
        names = ", ".join(given)[:LONGEST_QUOTE] or "nothing"
        raise EditError(f"the code blocks define {names}; give {slot} or one of its helpers")
    return _with(source, known, given, slot)


def _with(source: str, known: dict[str, ast.stmt], given: dict[str, str], slot: str) -> str:
    """Returns the source with definitions replaced by name.

    New definitions are inserted before the function of the slot.
    """
    lines = source.split("\n")
    added = "\n\n\n".join(text for name, text in given.items() if name not in known)
    for name, node in sorted(known.items(), key=lambda item: -item[1].lineno):
        start, end = _first_line(node), node.end_lineno
        text = given.get(name, "\n".join(lines[start:end]))
        if name == slot and added:
            text = f"{added}\n\n\n{text}"
        lines[start:end] = text.split("\n")
    return "\n".join(lines) if slot in known else "\n".join([*lines, added])


def _without_imports(source: str, tree: ast.Module) -> str:
    """Returns the source without lines that only import modules that every source can use."""
    dropped: set[int] = set()
    kept: set[int] = set()
    for node in tree.body:
        if _imports_given(node):
            dropped.update(range(node.lineno, node.end_lineno + 1))
        else:
            kept.update((node.lineno, node.end_lineno))
    lines = source.split("\n")
    return "\n".join(line for n, line in enumerate(lines, 1) if n not in dropped - kept)


def _imports_given(node: ast.stmt) -> bool:
    """Returns whether a statement only imports modules that every source can use."""
    if isinstance(node, ast.Import):
        names = [(alias.asname, alias.name) for alias in node.names]
        bound = [(name, path) if name else (path.split(".")[0],) * 2 for name, path in names]
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        names = [(alias.asname or alias.name, alias.name) for alias in node.names]
        bound = [(name, f"{node.module}.{path}") for name, path in names]
    else:
        return False
    return all(GIVEN.get(name) == module for name, module in bound)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)


def _tree(code: str) -> ast.Module | None:
    try:
        return _parsed(code, "")
    except EditError:
        return None


def _parsed(code: str, what: str) -> ast.Module:
    try:
        return parse(code)
    except SyntaxError as error:
        raise EditError(f"{what} has a syntax error in line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError):  # null bytes, or nested too deeply
        raise EditError(f"{what} is nested too deeply or is not text") from None


def _same(tree: ast.AST, other: ast.AST) -> bool:
    try:
        return ast.dump(tree) == ast.dump(other)
    except RecursionError:
        raise EditError("the edited source is nested too deeply") from None


def _definitions(tree: ast.Module) -> dict[str, ast.stmt]:
    """Returns the top-level functions and constants of a module by name."""
    return {name: node for node in tree.body if (name := _name(node))}


def _name(node: ast.stmt) -> str | None:
    """Returns the name of a function or constant that a statement defines; None for others."""
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
    """Returns the index of a statement's first line, including its decorators."""
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)]) - 1
