"""Which nodes of Python's syntax are in the language: what can be said of one node by itself."""

import ast
import re
from collections.abc import Iterator

from nanoevolve_jax.codegen.validation.refusals import Refused
from nanoevolve_jax.codegen.validation.vocabulary import ROOTS

MAX_IDENTIFIER = 40  # characters
MAX_INTEGER = 2**32 - 1  # a bit mask of float32

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
_ALLOWED = (*_STATEMENTS, *_EXPRESSIONS, *_PARTS)
_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")


def refused(node: ast.AST, reason: str, message: str) -> Refused:
    """A refusal that names the line of a node."""
    line = getattr(node, "lineno", None)
    return Refused(reason, message if line is None else f"line {line}: {message}")


def require_allowed(node: ast.AST) -> None:
    """What can be said of one node by itself."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        allowed = ", ".join(sorted(ROOTS))
        raise refused(node, "import", f"imports are not allowed; {allowed} are there already")
    if not isinstance(node, _ALLOWED):
        raise refused(node, "syntax", f"{type(node).__name__} is not part of the language")
    for name in _identifiers(node):
        _require_identifier(node, name)
    checks = {
        ast.Constant: _require_number,
        ast.Expr: _require_docstring,
        ast.FunctionDef: _require_plain_definition,
        ast.arguments: _require_plain_parameters,
        ast.keyword: _require_named,
        ast.comprehension: _require_synchronous,
    }
    checks.get(type(node), lambda node: None)(node)
    for target in _targets(node):
        _require_target(target)


def _identifiers(node: ast.AST) -> Iterator[str]:
    for field in ("id", "attr", "arg", "name"):
        name = getattr(node, field, None)
        if isinstance(name, str):
            yield name


def _require_identifier(node: ast.AST, name: str) -> None:
    reason = "attribute" if isinstance(node, ast.Attribute) else "name"
    if len(name) > MAX_IDENTIFIER:
        raise refused(
            node,
            "too_long",
            f"a name has {len(name)} characters; allowed: at most {MAX_IDENTIFIER}",
        )
    if name == "__import__":
        raise refused(node, "import", "imports are not allowed")
    if name != "_" and not _IDENTIFIER.match(name):
        raise refused(
            node, reason, f"{name!a}; allowed: names of ASCII letters, digits and _, a letter first"
        )


def _require_number(node: ast.Constant) -> None:
    value = node.value
    if isinstance(value, int) and value > MAX_INTEGER:  # signs are operators
        raise refused(node, "too_long", f"an integer is above {MAX_INTEGER}, the largest allowed")
    if value is not None and value is not Ellipsis and type(value) not in (bool, int, float):
        kind = type(value).__name__
        raise refused(node, "syntax", f"a constant is of type {kind}; allowed: numbers, None, ...")


def _require_docstring(node: ast.Expr) -> None:
    value = node.value
    if not (isinstance(value, ast.Constant) and isinstance(value.value, str)):
        raise refused(node, "syntax", "an expression stands alone; allowed: docstrings")


def _require_plain_definition(node: ast.FunctionDef) -> None:
    if node.decorator_list:
        raise refused(node, "syntax", "decorators are not part of the language")
    annotated = [arg for arg in ast.walk(node.args) if getattr(arg, "annotation", None)]
    if node.returns or annotated:
        raise refused(node, "syntax", "annotations are not part of the language")


def _require_plain_parameters(node: ast.arguments) -> None:
    if node.kwarg:
        raise refused(node.kwarg, "syntax", "** is not part of the language")


def _require_named(node: ast.keyword) -> None:
    if node.arg is None:
        raise refused(node, "syntax", "** is not part of the language")


def _require_synchronous(node: ast.comprehension) -> None:
    if node.is_async:
        raise refused(node.target, "syntax", "async is not part of the language")


def _targets(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    if isinstance(node, ast.AugAssign | ast.For | ast.comprehension):
        return [node.target]
    return []


def _require_target(target: ast.expr) -> None:
    """Only names are assigned to: nothing that exists is changed."""
    if isinstance(target, ast.Tuple | ast.List):
        for element in target.elts:
            _require_target(element)
    elif isinstance(target, ast.Starred):
        _require_target(target.value)
    elif isinstance(target, ast.Attribute):
        raise refused(target, "attribute", "an attribute is assigned to; allowed: names")
    elif not isinstance(target, ast.Name):
        raise refused(target, "syntax", "an element is assigned to; allowed: x = x.at[i].set(v)")
