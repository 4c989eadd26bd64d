"""The language of rewritten functions: an allow-list of Python's syntax and names.

A source consists of function definitions and of constants, which are numbers and tuples of numbers.
Functions contain arithmetic, static control flow and calls of allowed functions. This module parses
sources and never runs them.
"""

import ast
import re
import symtable
import threading
import warnings
from collections.abc import Iterator

from nanoevolve_jax.codegen.validation.refusals import Refused
from nanoevolve_jax.codegen.validation.vocabulary import (
    ARRAY_ATTRIBUTES,
    BUILTINS,
    CONSTANTS,
    HINTS,
    MODULES,
    ROOTS,
)
from nanoevolve_jax.policy.slots import SLOTS

MAX_SOURCE_BYTES = 20_000
MAX_NODES = 6_000
MAX_DEPTH = 60
MAX_IDENTIFIER = 40  # length of a name in characters
MAX_INTEGER = 2**32 - 1  # largest bit mask of a float32

_STATEMENTS = (
    *(ast.FunctionDef, ast.Return, ast.Assign, ast.AugAssign, ast.For, ast.If, ast.Expr),
    *(ast.Pass, ast.Break, ast.Continue),
)
_EXPRESSIONS = (
    *(ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Lambda, ast.IfExp, ast.ListComp, ast.GeneratorExp),
    *(ast.Compare, ast.Call, ast.Constant, ast.Attribute, ast.Subscript, ast.Starred, ast.Name),
    *(ast.List, ast.Tuple, ast.Slice),
)
_PARTS = (
    *(ast.Module, ast.arguments, ast.arg, ast.keyword, ast.comprehension, ast.expr_context),
    *(ast.boolop, ast.operator, ast.unaryop, ast.cmpop),
)
_GRAMMAR = (*_STATEMENTS, *_EXPRESSIONS, *_PARTS)
_NOT_IN_GRAMMAR = {  # fields of allowed nodes that must be empty, with their names in messages
    ast.FunctionDef: {"decorator_list": "decorators", "returns": "annotations"},
    ast.arg: {"annotation": "annotations"},
    ast.arguments: {"kwarg": "**"},
    ast.comprehension: {"is_async": "async"},
}
# Values that are evaluated only once must be immutable. Otherwise they could carry state between
# calls.
_LITERALS = (ast.Constant, ast.Tuple, ast.UnaryOp, ast.unaryop, ast.expr_context)

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")
_PATH = re.compile(r"\w+(\.\w+)+")  # for example, jax.nn.relu
_RESERVED = frozenset((*BUILTINS, *CONSTANTS, *ROOTS))
_ARGUMENTS = [name for slot in SLOTS.values() for name, _ in slot.named_arguments()]
_FIELDS = {field for name in _ARGUMENTS for field in name.split(".")[1:]}
_ATTRIBUTES = frozenset((*_FIELDS, *ARRAY_ATTRIBUTES))
_FUNCTIONS = frozenset(f"{module}.{name}" for module, names in MODULES.items() for name in names)

_LOCK = threading.Lock()
_PARSE_ATTEMPTS = 20


def parse(text: str) -> ast.Module:
    """Returns the result of `ast.parse`, and may be called from several threads at once.

    CPython 3.11 uses a shared counter for the depth of all trees under construction, and raises
    SystemError if another thread has changed it (github.com/python/cpython/issues/106905). Parsing
    is retried after a SystemError, because other libraries parse without this lock.

    Args:
      text: Python text.

    Raises:
      SyntaxError: If the text is not valid Python.
      ValueError: If the text contains null bytes.
      RecursionError: If the text is nested too deeply.
      MemoryError: If the text is nested too deeply.
    """
    with _LOCK, warnings.catch_warnings(action="ignore"):
        for _ in range(_PARSE_ATTEMPTS - 1):
            try:
                return ast.parse(text)
            except SystemError:
                continue
        return ast.parse(text)


def check(source: str, slot: str) -> None:
    """Checks that a source is in the language and defines the function of its slot.

    The normalised source must pass as well, because only the normalised source is stored.

    Args:
      source: Python text of the source.
      slot: Name of the slot, one of `SLOTS`.

    Raises:
      Refused: If the source is refused, with reason 'syntax', 'name', 'attribute', 'import' or
        'too_long', or with a reason of `vocabulary.HINTS`. The message names the line if there is
        one.
    """
    _check(source, slot, "the source")
    kept = normalised(source)
    if kept != source:
        _check(kept, slot, "the normalised source")


def normalised(source: str) -> str:
    """Returns a source without comments and docstrings, in a uniform layout.

    The remaining text cannot contain instructions to a language model that reads it later.

    Args:
      source: Python text that `check` has accepted.
    """
    tree = parse(source)
    docstrings = set(map(id, _docstrings(tree)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef):
            node.body = [x for x in node.body if id(getattr(x, "value", None)) not in docstrings]
            if not node.body and isinstance(node, ast.FunctionDef):
                node.body = [ast.Pass()]
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def _check(source: str, slot: str, name: str) -> None:
    tree = _parsed(source, name)
    _require_small(tree)
    docstrings = set(map(id, _docstrings(tree)))
    for node in ast.walk(tree):
        if id(node) not in docstrings:
            _require_grammar(node)
    _require_plain_module(tree)
    _require_names(tree, source)
    _require_attributes(tree)
    _require_function(tree, slot)


def _refused(node: ast.AST, reason: str, message: str) -> Refused:
    line = getattr(node, "lineno", None)
    return Refused(reason, message if line is None else f"line {line}: {message}")


def _parsed(source: str, name: str) -> ast.Module:
    try:
        size = len(source.encode())
    except UnicodeEncodeError:
        raise Refused("syntax", "the source must be valid Unicode") from None
    if size > MAX_SOURCE_BYTES:
        raise Refused("too_long", f"{name} must have at most {MAX_SOURCE_BYTES} bytes, got {size}")
    try:
        return parse(source)
    except SyntaxError as error:
        raise Refused("syntax", f"line {error.lineno or 1}: {error.msg}") from None
    except ValueError:
        raise Refused("syntax", "the source cannot be read as Python") from None
    except (RecursionError, MemoryError):
        raise Refused("too_long", "the source is nested too deeply to be read") from None


def _require_small(tree: ast.Module) -> None:
    """Checks the number of nodes and their depth, level by level and without recursion."""
    level: list[ast.AST] = [tree]
    nodes = depth = 0
    while level:
        nodes, depth = nodes + len(level), depth + 1
        if nodes > MAX_NODES:
            raise Refused("too_long", f"the source has over {MAX_NODES} nodes of syntax")
        if depth > MAX_DEPTH:
            raise _refused(level[0], "too_long", f"nested more than {MAX_DEPTH} levels deep")
        level = [child for node in level for child in ast.iter_child_nodes(node)]


def _docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    for node in ast.walk(tree):
        body = node.body if isinstance(node, ast.Module | ast.FunctionDef) else ()
        first = body[0].value if body and isinstance(body[0], ast.Expr) else None
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            yield first


def _require_grammar(node: ast.AST) -> None:
    """Checks the type and fields of a single node."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        modules = ", ".join(sorted(ROOTS))
        raise _refused(node, "import", f"imports are not allowed; {modules} need no import")
    if not isinstance(node, _GRAMMAR):
        raise _refused(node, "syntax", f"{type(node).__name__} is not part of the language")
    for field, what in _NOT_IN_GRAMMAR.get(type(node), {}).items():
        if getattr(node, field):
            raise _refused(node, "syntax", f"{what} is not part of the language")
    if isinstance(node, ast.keyword) and node.arg is None:
        raise _refused(node, "syntax", "** is not part of the language")
    for field in ("id", "attr", "arg", "name"):
        if isinstance(name := getattr(node, field, None), str):
            _require_identifier(node, name)
    if isinstance(node, ast.Constant):
        _require_number(node)
    if isinstance(node, ast.Expr) and not isinstance(getattr(node.value, "value", None), str):
        raise _refused(node, "syntax", "an expression must be used; only docstrings stand alone")
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    for part in (part for target in targets if target for part in ast.walk(target)):
        if isinstance(part, ast.Attribute):
            raise _refused(part, "attribute", "an attribute cannot be assigned to")
        if isinstance(part, ast.Subscript):
            raise _refused(part, "syntax", "an element must be set with x = x.at[i].set(v)")


def _require_identifier(node: ast.AST, name: str) -> None:
    if len(name) > MAX_IDENTIFIER:
        message = f"a name must have at most {MAX_IDENTIFIER} characters, got {len(name)}"
        raise _refused(node, "too_long", message)
    if name == "__import__":
        raise _refused(node, "import", "imports are not allowed")
    if name != "_" and not _IDENTIFIER.match(name):
        message = f"a name must be of ASCII letters, digits and _, a letter first, got {name!a}"
        reason = "attribute" if isinstance(node, ast.Attribute) else "name"
        raise _refused(node, reason, message)


def _require_number(node: ast.Constant) -> None:
    value = node.value
    if isinstance(value, int) and value > MAX_INTEGER:  # a minus sign is an operator
        raise _refused(node, "too_long", f"an integer must be at most {MAX_INTEGER}")
    if value is not None and value is not Ellipsis and type(value) not in (bool, int, float):
        kind = type(value).__name__
        raise _refused(node, "syntax", f"a constant must be a number, None or ..., got a {kind}")


def _require_plain_module(tree: ast.Module) -> None:
    """Refuses top-level code, and mutable objects that would persist between calls."""
    for statement in tree.body:
        match statement:
            case ast.FunctionDef(args=arguments):
                values = [*arguments.defaults, *filter(None, arguments.kw_defaults)]
            case ast.Assign(value=value):
                values = [value]
            case ast.Expr():
                continue
            case _:
                message = (
                    f"only functions and constants stand at the top, got {type(statement).__name__}"
                )
                raise _refused(statement, "syntax", message)
        if not all(isinstance(x, _LITERALS) for value in values for x in ast.walk(value)):
            message = "a constant or default at the top must be a number or a tuple of numbers"
            raise _refused(statement, "syntax", message)


def _require_attributes(tree: ast.Module) -> None:
    """Checks that attributes are known and that modules are used only to access functions."""
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    continued = {id(node.value) for node in attributes}
    for node in attributes:
        path = ast.unparse(node)
        if not _PATH.fullmatch(path) or path.split(".")[0] not in ROOTS:
            if node.attr not in _ATTRIBUTES:
                raise _refused(node, "attribute", f"attribute {node.attr!r} is not allowed")
        elif path not in _FUNCTIONS and not (path in MODULES and id(node) in continued):
            hints = [HINTS[part] for part in path.split(".") if part in HINTS]
            reason, hint = (hints or [("attribute", "it is not an allowed function")])[0]
            raise _refused(node, reason, f"{path!r} is not allowed: {hint}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in ROOTS and id(node) not in continued:
            raise _refused(node, "name", f"module {node.id!r} cannot be a value or be assigned to")


def _require_names(tree: ast.Module, source: str) -> None:
    """Checks that each name is defined in an enclosing scope or is an allowed builtin name.

    A name that is local to another function must not be used. It has no definition here, and in an
    exported file it could refer to any builtin function.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            top = symtable.symtable(source, "<source>", "exec")
    except SyntaxError as error:  # for example, two parameters with the same name
        raise Refused("syntax", f"line {error.lineno or 1}: {error.msg}") from None
    lines: dict[str, int] = {}
    for node in ast.walk(tree):
        for field in ("id", "name", "arg"):
            lines.setdefault(getattr(node, field, None) or "", getattr(node, "lineno", 1))
    known = _RESERVED | {x.get_name() for x in top.get_symbols() if x.is_assigned()}
    tables = [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        # Symbols are sorted because their order depends on Python's hash seed.
        for symbol in sorted(table.get_symbols(), key=symtable.Symbol.get_name):
            name = symbol.get_name()
            line = lines.get(name, table.get_lineno())
            if name in _RESERVED and (symbol.is_assigned() or symbol.is_parameter()):
                message = f"line {line}: {name!r} is given and cannot be defined anew"
                raise Refused("name", message)
            if symbol.is_global() and name not in known:
                message = f"line {line}: {name!r} is not defined here and not allowed"
                raise Refused("name", message)


def _require_function(tree: ast.Module, slot: str) -> None:
    """Checks that top-level names are defined only once and include the slot's function."""
    names = []
    for node in tree.body:
        if isinstance(node, ast.Assign):
            names += [x.id for x in ast.walk(node) if isinstance(x, ast.Name)]
        elif isinstance(node, ast.FunctionDef):
            names.append(node.name)
    if repeated := [name for i, name in enumerate(names) if name in names[:i]]:
        raise Refused("name", f"{repeated[0]!r} is defined twice at the top")
    parameters = ", ".join(SLOTS[slot].parameters)
    functions = {x.name: ast.unparse(x.args) for x in tree.body if isinstance(x, ast.FunctionDef)}
    if functions.get(slot) != parameters:
        raise Refused("name", f"the source must have def {slot}({parameters}) at the top")
