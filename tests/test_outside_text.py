"""Text from outside is printed as text, and nothing that a terminal does ends a finished run."""

import ast
from pathlib import Path

import pytest

from nanoevolve_jax.terminal.streams import visible, visible_lines

ROOT = Path(__file__).parent.parent
# The only modules that may write to a terminal; `remote` runs before its folder is checked, so it
# imports no other module.
WRITERS = ("terminal/streams.py", "terminal/console.py", "deployment/remote.py")
SOURCES = [
    path
    for folder in ("nanoevolve_jax", "benchmarks", "model", "data", "configs")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not path.as_posix().endswith(WRITERS)
]


def raw_output(tree):
    """Every way in which a module could print without the console, as (line, name)."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id="print"):
                yield node.lineno, "print"
            case ast.Attribute(attr="from_markup" | "from_ansi"):
                yield node.lineno, node.attr
            case ast.Attribute(value=ast.Name(id="rich")):
                yield node.lineno, f"rich.{node.attr}"
            case ast.Attribute(
                value=ast.Attribute(value=ast.Name(id="sys"), attr="stdout" | "stderr"),
                attr="write" | "writelines" | "buffer",
            ):
                yield node.lineno, f"sys.{node.value.attr}.{node.attr}"
            case ast.ImportFrom(module="rich.console" | "rich.text" | "rich.markup" | "rich"):
                for name in node.names:
                    if name.name in ("Console", "Text", "print", "escape", "render"):
                        yield node.lineno, name.name
            case ast.Call(func=ast.Name(id="TextColumn")):
                if not any(keyword.arg == "markup" for keyword in node.keywords):
                    yield node.lineno, "TextColumn with markup"


def test_only_the_console_writes_to_a_terminal():
    found = {
        path.relative_to(ROOT): list(raw_output(ast.parse(path.read_text()))) for path in SOURCES
    }
    assert not {path: uses for path, uses in found.items() if uses}


HOSTILE = {
    "\x1b[2J": r"\x1b[2J",
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "\x1b]8;;http://x\x1b\\here": r"\x1b]8;;http://x\x1b\here",
    "a\rb": r"a\rb",
    "a\bb": r"a\x08b",
    "\x7f": r"\x7f",
    "\x9b31m": r"\x9b31m",
    "\u202eabc\u2066": r"\u202eabc\u2066",
    "a\u200bb\ufeff\u2060\u00ad": r"a\u200bb\ufeff\u2060\xad",
    "\u2028\u2029\x85": r"\u2028\u2029\x85",
    "\ud800": r"\ud800",
    "\U000e0041\ufe0f\u3164": r"\U000e0041\ufe0f\u3164",
    "one\ntwo\tthree": r"one\ntwo\tthree",
    "[bold]x[/bold] [/x] :smile:": "[bold]x[/bold] [/x] :smile:",
    "Grüße, 世界 ▁█ \U0001f600": "Grüße, 世界 ▁█ \U0001f600",
}


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_every_character_can_be_seen(text):
    assert visible(text) == HOSTILE[text]
    assert visible_lines(text).replace("\n", r"\n").replace("\t", r"\t") == HOSTILE[text]
