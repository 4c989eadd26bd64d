"""The small language that functions are written in: an allow-list over Python's syntax.

Nothing is run and JAX is not imported. What passes consists of function definitions and constants,
which are numbers and tuples of numbers; inside functions there is arithmetic, static control flow
and calls of allowed functions.
"""

import ast
import warnings
from collections.abc import Iterator

from nanoevolve_jax.codegen.validation.contract import PARAMETERS
from nanoevolve_jax.codegen.validation.names import require_known_names, require_names_in_scope
from nanoevolve_jax.codegen.validation.parsing import parse
from nanoevolve_jax.codegen.validation.refusals import Refused
from nanoevolve_jax.codegen.validation.syntax import refused, require_allowed

MAX_SOURCE_BYTES = 20_000
MAX_NODES = 6_000
MAX_DEPTH = 60

# What is evaluated once and lives on between calls must be immutable, or it would carry state.
_LITERALS = (ast.Constant, ast.Tuple, ast.UnaryOp, ast.unaryop, ast.expr_context)


def check(source: str, slot: str, max_bytes: int = MAX_SOURCE_BYTES) -> None:
    """Refuses a source that is outside the language or does not define its slot's function.

    The normalised source is what is kept and read later, so it must pass as well.

    Args:
      source: Python text.
      slot: One of `contract.PARAMETERS`.
      max_bytes: Bound on the source, and on the normalised source, in UTF-8.

    Raises:
      Refused: with reason 'syntax', 'name', 'attribute', 'import' or 'too_long', or the reason of
        an attribute in `vocabulary.POINTED`; the message names the line.
    """
    _check(source, slot, max_bytes)
    kept = normalised(source)
    size = len(kept.encode())
    if size > max_bytes:
        raise Refused(
            "too_long",
            f"the normalised source must have at most {max_bytes} bytes, got {size}",
        )
    if kept != source:
        _check(kept, slot, max_bytes)


def _check(source: str, slot: str, max_bytes: int) -> None:
    tree = _parsed(source, max_bytes)
    _require_small(tree)
    docstrings = set(map(id, _docstrings(tree)))
    for node in ast.walk(tree):
        if id(node) not in docstrings:
            require_allowed(node)
    _require_plain_module(tree)
    require_known_names(tree)
    require_names_in_scope(source)
    _require_function(tree, slot)


def normalised(source: str) -> str:
    """A source that `check` has passed, without comments and docstrings and in one layout.

    What stays cannot tell a reader of the source, such as a language model, anything but code.
    """
    tree = _parsed(source, len(source.encode()))
    docstrings = set(map(id, _docstrings(tree)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef):
            node.body = [x for x in node.body if id(getattr(x, "value", None)) not in docstrings]
            if not node.body and isinstance(node, ast.FunctionDef):
                node.body = [ast.Pass()]
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def _parsed(source: str, max_bytes: int) -> ast.Module:
    try:
        size = len(source.encode())
    except UnicodeEncodeError:
        raise Refused("syntax", "the source is not valid Unicode") from None
    if size > max_bytes:
        raise Refused("too_long", f"the source has {size} bytes; allowed: at most {max_bytes}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a child process says nothing but its result
            return parse(source)
    except SyntaxError as error:
        raise Refused("syntax", f"line {error.lineno or 1}: {error.msg}") from None
    except ValueError:
        raise Refused("syntax", "the source cannot be read as Python") from None
    except (RecursionError, MemoryError):
        raise Refused("too_long", "the source is nested too deeply to be read") from None


def _require_small(tree: ast.Module) -> None:
    """Bounds the number of nodes and the depth, level by level, without recursion."""
    level, nodes, depth = [tree], 0, 0
    while level:
        nodes, depth = nodes + len(level), depth + 1
        if nodes > MAX_NODES:
            raise Refused("too_long", f"the source has over {MAX_NODES} nodes of syntax")
        if depth > MAX_DEPTH:
            line = getattr(level[0], "lineno", 1)
            raise Refused("too_long", f"line {line}: nested more than {MAX_DEPTH} levels deep")
        level = [child for node in level for child in ast.iter_child_nodes(node)]


def _docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    for node in ast.walk(tree):
        first = (
            node.body[0] if isinstance(node, ast.Module | ast.FunctionDef) and node.body else None
        )
        value = first.value if isinstance(first, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield value


def _require_plain_module(tree: ast.Module) -> None:
    """Refuses what runs at the top, and mutable objects that would survive between calls."""
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef):
            defaults = [*statement.args.defaults, *filter(None, statement.args.kw_defaults)]
        elif isinstance(statement, ast.Assign):
            defaults = [statement.value]
        elif isinstance(statement, ast.Expr):
            continue
        else:
            kind = type(statement).__name__
            raise refused(
                statement, "syntax", f"{kind} at the top; allowed: functions and constants"
            )
        for value in defaults:
            if not all(isinstance(node, _LITERALS) for node in ast.walk(value)):
                raise refused(
                    statement,
                    "syntax",
                    "a constant or a default at the top must be a number or a tuple of numbers",
                )


def _require_function(tree: ast.Module, slot: str) -> None:
    top = [x for x in tree.body if isinstance(x, ast.FunctionDef | ast.Assign)]
    seen: set[str] = set()
    for statement in top:
        names = (
            [statement.name]
            if isinstance(statement, ast.FunctionDef)
            else [x.id for x in ast.walk(statement) if isinstance(x, ast.Name)]
        )
        for name in names:
            if name in seen:
                raise refused(statement, "name", f"{name!r} is defined twice at the top")
            seen.add(name)
    found = next((x for x in top if getattr(x, "name", None) == slot), None)
    wanted = f"def {slot}({', '.join(PARAMETERS[slot])})"
    if found is None:
        raise Refused("name", f"no function {slot!r} at the top; wanted: {wanted}")
    if ast.unparse(found.args) != ", ".join(PARAMETERS[slot]):
        raise refused(found, "name", f"wrong parameters of {slot!r}; wanted: {wanted}")
