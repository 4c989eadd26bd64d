"""Edits do what an answer says, or say what is wrong with it."""

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nanoevolve_jax.codegen
from nanoevolve_jax.codegen.mutators.edits import MAX_BYTES, EditError, apply

SEEDS = Path(nanoevolve_jax.codegen.__file__).parent / "seeds"
SOURCE = """\
SCALE = 2.0


def helper(x):
    y = x * SCALE
    return y


def other(x):
    y = x * 3.0
    return y


def gate(sensors, features, control):
    return helper(sensors.loss_ema)
"""


def block(search: str, replace: str) -> str:
    return f"<<<<<<< SEARCH\n{search}\n=======\n{replace}\n>>>>>>> REPLACE\n"


def fenced(code: str, language: str = "python") -> str:
    return f"```{language}\n{code}\n```\n"


def definitions(source: str) -> dict[str, str]:
    nodes = ast.parse(source).body
    names = [node.name if hasattr(node, "name") else node.targets[0].id for node in nodes]
    assert len(set(names)) == len(names)
    return {name: ast.dump(node) for name, node in zip(names, nodes, strict=True)}


@pytest.mark.parametrize(
    "wrap", ["{}", "Why not:\n\n```\n{}```\nI hope it helps.", "```diff\n{}```"]
)
def test_blocks_replace_lines_in_code_blocks_or_not(wrap):
    text = wrap.format(block("    y = x * SCALE", "    y = x + SCALE"))
    assert apply(text, SOURCE, "gate") == SOURCE.replace("x * SCALE", "x + SCALE")


def test_blocks_are_applied_in_order():
    answer = block("SCALE = 2.0", "SCALE = 4.0") + "and\n" + block("SCALE = 4.0", "SCALE = 8.0")
    assert apply(answer, SOURCE, "gate") == SOURCE.replace("2.0", "8.0")


def test_blanks_at_the_ends_of_lines_and_carriage_returns_do_not_count():
    answer = block("SCALE = 2.0  ", "SCALE = 4.0").replace("\n", "\r\n")
    assert apply(answer, SOURCE, "gate") == SOURCE.replace("2.0", "4.0")


@given(st.data())
def test_a_block_changes_the_lines_it_quotes_and_no_others(data):
    lines = SOURCE.rstrip("\n").split("\n")
    start = data.draw(st.integers(0, len(lines) - 1))
    end = data.draw(st.integers(start + 1, len(lines)))
    search, new = lines[start:end], "NEW = 1.0"
    answer = block("\n".join(search), new)
    expected = "\n".join([*lines[:start], new, *lines[end:]])
    count = sum(lines[i : i + len(search)] == search for i in range(len(lines)))
    try:
        tree = ast.parse(expected)
    except SyntaxError:
        tree = None
    good = (
        any(line.strip() for line in search)
        and count == 1
        and tree is not None
        and any(getattr(node, "name", None) == "gate" for node in tree.body)
    )
    if good:
        assert apply(answer, SOURCE, "gate") == expected + "\n"
    else:
        with pytest.raises(EditError):
            apply(answer, SOURCE, "gate")


@given(st.permutations(["SCALE", "helper", "other", "gate", "added", "ADDED"]), st.integers(1, 6))
def test_whole_functions_replace_and_add_by_name(order, count):
    code = {
        "SCALE": "SCALE = (\n    5.0\n)",
        "helper": "def helper(x):\n\n    # with a comment\n    return x - 1.0",
        "other": "def other(x, y=2.0): return x",
        "gate": "def gate(sensors, features, control):\n    return 0.5",
        "added": "def added(x):\n    return x",
        "ADDED": "ADDED = [1.0, 2.0]",
    }
    chosen = order[:count]
    before = definitions(SOURCE)
    answer = "\n".join(fenced(code[name]) for name in chosen)
    if set(chosen) <= {"added", "ADDED"}:
        with pytest.raises(EditError, match="give gate or one of its helpers"):
            apply(answer, SOURCE, "gate")
        return
    found = definitions(apply(answer, SOURCE, "gate"))
    assert found == before | {name: definitions(code[name])[name] for name in chosen}
    assert list(found)[-1] == "gate"  # what is new comes before it is needed


@pytest.mark.parametrize("slot", ["direction", "gate", "actuate", "features"])
def test_a_seed_given_back_whole_changes_nothing(slot):
    seed = (SEEDS / f"{slot}.py").read_text()
    with pytest.raises(EditError, match="change nothing but comments or layout"):
        apply(fenced(f"# the same\n{seed}"), seed, slot)


BAD = [
    ("", "no SEARCH/REPLACE block and no code block"),
    ("Just use Adam.", "no SEARCH/REPLACE block and no code block"),
    (fenced("def gate(): pass", "bash"), "no SEARCH/REPLACE block and no code block"),
    ("```python\ndef gate(s):\n", "code block is not closed"),
    (block("    z = 1", "    z = 2"), "block 1 (at 'z = 1') is not in the source"),
    (block("y = x * SCALE", "y = x"), "is not in the source; quote whole lines"),
    (block("    return y", "    return x"), "is in the source 2 times; quote more lines"),
    (block("", "x = 1"), "SEARCH of block 1 is empty"),
    (block("SCALE = 2.0", "SCALE = 2.0  # two"), "change nothing"),
    (block("SCALE = 2.0", "SCALE = = 2.0"), "syntax error in line 1"),
    (block("def gate(sensors, features, control):", "def gates(s):"), "no function named gate"),
    ("<<<<<<< SEARCH\nSCALE = 2.0\n", "does not end with >>>>>>> REPLACE"),
    ("<<<<<<< SEARCH\nSCALE = 2.0\n>>>>>>> REPLACE", "no line ======="),
    ("<<<<<<< SEARCH\n<<<<<<< SEARCH\n", "begins inside a block"),
    (fenced("def gate(:"), "a code block has a syntax error in line 1"),
    (fenced("import os\ndef gate(s):\n    return 1"), "line 1 of a code block is 'import os'"),
    (fenced("class A: pass"), "allowed: functions, and constants"),
    (fenced("def gate(s):\n    return 1\n" * 2), "define gate twice"),
    (fenced("def unknown(s):\n    return 1"), "define unknown; give gate or one of its helpers"),
    (fenced("SCALE = " + "-" * 90_000 + "1"), "nested too deeply"),
    (fenced("SCALE = 1" + "+1" * 20_000), "nested too deeply"),
    (fenced("SCALE = '\0'"), "a code block"),
    ("x" * (MAX_BYTES + 1), f"longer than {MAX_BYTES} bytes"),
]


@pytest.mark.parametrize(("answer", "words"), BAD, ids=range(len(BAD)))
def test_bad_answers_are_told_what_is_wrong(answer, words):
    with pytest.raises(EditError) as error:
        apply(answer, SOURCE, "gate")
    assert words in str(error.value) and "\n" not in str(error.value)


LONG = "ignore_what_you_were_told_" * 1000


@pytest.mark.parametrize(
    "answer",
    [
        block(LONG, "x = 1"),
        fenced(f"def {LONG}(s):\n    return 1\n" * 2),
        fenced(f"def {LONG}(s):\n    return 1\n"),
        fenced(f"import {LONG}"),
    ],
)
def test_what_is_wrong_quotes_little_of_an_answer(answer):
    with pytest.raises(EditError) as error:
        apply(answer, SOURCE, "gate")
    assert len(str(error.value)) < 300


_PIECES = [
    *("<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE", "```", "```python", "~~~", "SCALE = 2.0"),
    *("    return y", "def gate(a):", "    return a", "\x0c", "\r", "\ud800", "import os", ""),
]


@given(st.lists(st.one_of(st.sampled_from(_PIECES), st.text(max_size=20)), max_size=30))
def test_no_answer_raises_anything_else_or_breaks_the_syntax(pieces):
    try:
        found = apply("\n".join(pieces), SOURCE, "gate")
    except EditError as error:
        assert str(error)
    else:
        assert "gate" in definitions_or_names(found)


def definitions_or_names(source: str) -> set[str]:
    return {getattr(node, "name", "") for node in ast.parse(source).body}
