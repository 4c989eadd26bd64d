"""Imports go one way: from commands through evidence and execution down to policies and errors."""

import ast
from collections.abc import Iterator

import pytest

from nanoevolve_jax.cli import COMMANDS

# A module may import modules of its own row and of the rows above it.
LAYERS = (
    ("errors", "escaping", "stopping"),
    ("model", "data", "configs"),
    ("policy",),
    ("execution",),
    ("evidence",),
    ("evolution",),
    ("exports",),
    ("reporting",),
    ("tracking",),
    ("terminal",),
    ("codegen",),
    ("commands",),
)
RANKS = {name: rank for rank, row in enumerate(LAYERS) for name in row}
# Modules inside a package that count as commands.
COMMAND_MODULES = {name for name in COMMANDS if "." in name} | {
    "codegen.deployment.remote",  # program of a remote job
    "model.parity",
    "model.parity_optimizer",
}


def layer(module: str) -> str:
    """Returns the layer of a module such as `policy.spec`."""
    package = module.partition(".")[0]
    return "commands" if module in COMMAND_MODULES or package not in RANKS else package


def modules(repository) -> Iterator[tuple[str, ast.Module]]:
    """Yields the name of every module, without the package's own name, and its syntax tree."""
    for root, package in [("nanoevolve_jax", ""), ("model", "model"), ("data", "data")]:
        for path in sorted((repository / root).rglob("*.py")):
            inside = path.relative_to(repository / root).with_suffix("")
            yield ".".join([*filter(None, [package]), *inside.parts]), ast.parse(path.read_text())


def imported(tree: ast.Module) -> Iterator[str]:
    """Yields the modules of this project that a module imports, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("nanoevolve_jax."):
                yield name.removeprefix("nanoevolve_jax.")


def broken_rules(repository) -> Iterator[tuple[str, str]]:
    """Yields (importing module, imported name) of every import that breaks the order."""
    for module, tree in modules(repository):
        for name in imported(tree):
            below = name if layer(name) == "commands" else name.rpartition(".")[0] or name
            core_uses_codegen = below.startswith("codegen") and not module.startswith("codegen")
            if RANKS[layer(below)] > RANKS[layer(module)] or core_uses_codegen:
                yield module, name


def test_no_import_goes_against_the_order_of_the_layers(repository):
    broken = [f"{m} imports {n}" for m, n in broken_rules(repository)]
    assert not broken


@pytest.mark.parametrize(
    ("module", "expected"),
    [("policy.spec", "policy"), ("search", "commands"), ("codegen.autonomous", "commands")],
)
def test_a_command_is_the_top_layer_wherever_its_file_lies(module, expected):
    assert layer(module) == expected
