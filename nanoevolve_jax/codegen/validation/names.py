"""Which names a source may use: its own, and those of the vocabulary."""

import ast
import symtable
import warnings
from collections.abc import Iterator

from nanoevolve_jax.codegen.validation.contract import FIELDS
from nanoevolve_jax.codegen.validation.refusals import Refused
from nanoevolve_jax.codegen.validation.syntax import refused
from nanoevolve_jax.codegen.validation.vocabulary import (
    ARRAY_ATTRIBUTES,
    BUILTINS,
    CONSTANTS,
    MODULES,
    POINTED,
    ROOTS,
)

_RESERVED = frozenset((*BUILTINS, *CONSTANTS, *ROOTS))
_ATTRIBUTES = FIELDS | frozenset(ARRAY_ATTRIBUTES)
_FUNCTIONS = frozenset(f"{module}.{name}" for module, names in MODULES.items() for name in names)
_MODULES = frozenset((*MODULES, *ROOTS))


def require_known_names(tree: ast.Module) -> None:
    """Names are the source's own or allowed ones; a module appears only as `module.function`.

    Raises:
      Refused: with reason 'name' or 'attribute', or the reason of an attribute in
        `vocabulary.POINTED`.
    """
    own = set()
    for node, name in _bound(tree):
        if name in _RESERVED:
            raise refused(node, "name", f"{name!r} is given and cannot be defined anew")
        own.add(name)
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    continued = {id(node.value) for node in attributes}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            if node.id not in own | _RESERVED:
                raise refused(node, "name", f"{node.id!r} is not defined and not allowed")
            if node.id in ROOTS and id(node) not in continued:
                raise refused(node, "name", f"{node.id!r} is a value; allowed: its functions")
    for node in attributes:
        _require_attribute(node, id(node) in continued)


def require_names_in_scope(source: str) -> None:
    """Names that no function around them defines are allowed ones, or defined at the top.

    One that only another function defines is missing in the jail. Where the source stands in an
    exported file it is there: as a name of the file, or as any builtin of Python's.

    Raises:
      Refused: with reason 'name'; with 'syntax' for two parameters of one name.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a child process says nothing but its result
            top = symtable.symtable(source, "<source>", "exec")
    except SyntaxError as error:
        raise Refused("syntax", f"line {error.lineno or 1}: {error.msg}") from None
    known = _RESERVED | {x.get_name() for x in top.get_symbols() if x.is_assigned()}
    tables = list(top.get_children())
    while tables:
        table = tables.pop()
        tables += table.get_children()
        # Their order follows from Python's hashes of text, which differ from process to process.
        for symbol in sorted(table.get_symbols(), key=lambda x: x.get_name()):
            if symbol.is_global() and symbol.get_name() not in known:
                place = f"line {table.get_lineno()}, in {table.get_name()!r}"
                raise Refused("name", f"{place}: {symbol.get_name()!r} is defined elsewhere only")


def _bound(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield node, node.name
        elif isinstance(node, ast.arg):
            yield node, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node, node.id


def _module_path(node: ast.Attribute) -> str | None:
    """The whole of an attribute that starts at a module, such as 'jax.nn.relu'."""
    names, value = [], node
    while isinstance(value, ast.Attribute):
        names.append(value.attr)
        value = value.value
    starts_at_module = isinstance(value, ast.Name) and value.id in ROOTS
    return ".".join([value.id, *reversed(names)]) if starts_at_module else None


def _require_attribute(node: ast.Attribute, continued: bool) -> None:
    path = _module_path(node)
    if path is None:
        if node.attr not in _ATTRIBUTES:
            raise refused(node, "attribute", f"attribute {node.attr!r} is not allowed")
    elif path not in _FUNCTIONS and not (continued and path in _MODULES):
        pointed = [POINTED[part] for part in path.split(".") if part in POINTED]
        reason, hint = (pointed or [("attribute", "not among the allowed functions")])[0]
        raise refused(node, reason, f"{path!r} is not allowed: {hint}")
