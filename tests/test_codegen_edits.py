"""Edits of a source by an answer, and the errors of answers that cannot be applied."""

import ast
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoevolve_jax.codegen.mutators.edits import GIVEN, MAX_BYTES, EditError, apply
from nanoevolve_jax.codegen.validation.vocabulary import ROOTS
from nanoevolve_jax.policy.slots import built_in_source

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
    edited = definitions(apply(answer, SOURCE, "gate"))
    assert edited == before | {name: definitions(code[name])[name] for name in chosen}
    assert list(edited)[-1] == "gate"  # new functions come before their first use


@pytest.mark.parametrize("slot", ["direction", "gate", "actuate", "features"])
def test_the_built_in_source_unchanged_is_not_an_edit(slot):
    seed = built_in_source(slot)
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
    (fenced("import os\ndef gate(s):\n    return 1"), "got 'import os' in line 1"),
    (fenced("class A: pass"), "must contain functions and constants"),
    (fenced("def gate(s):\n    return 1\n" * 2), "define gate twice"),
    (fenced("def unknown(s):\n    return 1"), "define unknown; give gate or one of its helpers"),
    (fenced("SCALE = " + "-" * 90_000 + "1"), "nested too deeply"),
    (fenced("SCALE = 1" + "+1" * 20_000), "nested too deeply"),
    (fenced("SCALE = '\0'"), "a code block"),
    ("x" * (MAX_BYTES + 1), f"longer than {MAX_BYTES} bytes"),
]


@pytest.mark.parametrize(("answer", "words"), BAD, ids=range(len(BAD)))
def test_errors_name_what_is_wrong_with_an_answer(answer, words):
    with pytest.raises(EditError) as error:
        apply(answer, SOURCE, "gate")
    assert words in str(error.value) and "\n" not in str(error.value)


LONG = "ignore_your_instructions_" * 1000


@pytest.mark.parametrize(
    "answer",
    [
        block(LONG, "x = 1"),
        fenced(f"def {LONG}(s):\n    return 1\n" * 2),
        fenced(f"def {LONG}(s):\n    return 1\n"),
        fenced(f"import {LONG}"),
    ],
)
def test_errors_quote_little_of_an_answer(answer):
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
        edited = apply("\n".join(pieces), SOURCE, "gate")
    except EditError as error:
        assert str(error)
    else:
        assert "gate" in definitions_or_names(edited)


def definitions_or_names(source: str) -> set[str]:
    return {getattr(node, "name", "") for node in ast.parse(source).body}


FOUR = SOURCE.replace("2.0", "4.0")
EDIT = block("SCALE = 2.0", "SCALE = 4.0")
WHOLE = "SCALE = 4.0"
ACCEPTED = {
    "a colon": EDIT.replace("SEARCH", "SEARCH:"),
    "a file name": EDIT.replace("SEARCH", "SEARCH direction.py"),
    "a file name in backticks": EDIT.replace("SEARCH", "SEARCH `src/direction.py`:"),
    "a number": EDIT.replace("SEARCH", "SEARCH (block 1)").replace("REPLACE", "REPLACE (block 1)"),
    "lower case": EDIT.lower().replace("scale", "SCALE"),
    "mixed case": EDIT.replace("SEARCH", "Search").replace("REPLACE", "Replace"),
    "no blanks": EDIT.replace("< S", "<S").replace("> R", ">R"),
    "two blanks": EDIT.replace("< S", "<  S").replace("> R", ">  R"),
    "blanks at the end": EDIT.replace("\n", "  \n"),
    "no word at the end": EDIT.replace(" REPLACE", ""),
    "five brackets": EDIT.replace("<<<<<<<", "<<<<<").replace(">>>>>>>", ">>>>>"),
    "nine brackets": EDIT.replace("<<<<<<<", "<<<<<<<<<").replace("=======", "========="),
    "carriage returns": EDIT.replace("\n", "\r\n"),
    "a byte order mark": "\ufeff" + EDIT,
    "zero-width blanks": EDIT.replace("SCALE", "\u200bSCALE\u200d"),
    "blanks that do not break": EDIT.replace(" ", "\u00a0"),
    "an indented list": "1. Less:\n   ```\n   " + EDIT.replace("\n", "\n   ") + "\n   ```",
    "markers with indentation": EDIT.replace("<<<<<<<", "    <<<<<<<"),
    "a last token": EDIT.rstrip() + "<|im_end|>",
    "colours": EDIT.replace("<<<<<<< SEARCH", "\x1b[1;32m<<<<<<< SEARCH\x1b[0m"),
    "what was there, quoted before": fenced("SCALE = 2.0") + "becomes\n" + fenced(WHOLE),
    "what was there, quoted after": fenced(WHOLE) + "instead of\n" + fenced("SCALE = 2.0"),
    "an import in a block": block("SCALE = 2.0", "import jax.numpy as jnp\nSCALE = 4.0"),
    **{
        f"a fence of {language or 'no language'}": fenced(WHOLE, language)
        for language in ("", "py", "py3", "Python", "python3", "python3.11", "jax", "ipython")
    },
    "a title": fenced(WHOLE, 'python title="direction.py"'),
    "a fence in braces": fenced(WHOLE, "{.python}"),
    "tildes": fenced(WHOLE).replace("```", "~~~"),
    "four backticks": fenced(WHOLE).replace("```", "````"),
    "an indented fence": "- as follows\n\n    " + fenced(WHOLE).replace("\n", "\n    "),
    "a fence with a tab": fenced(WHOLE).replace("\n", "\n\t").replace("```p", "\t```p"),
    "a docstring": fenced(f'"""Less."""\n{WHOLE}'),
    "a formula beside it": fenced(WHOLE) + "where\n\n" + fenced("u = m / sqrt(v) ...", ""),
    **{
        f"import {given}": fenced(f"{given}\n\n{WHOLE}")
        for given in (
            "import jax",
            "import jax.numpy as jnp",
            "from jax import numpy as jnp",
            "from jax import lax, numpy as jnp",
            "import jax.nn, math",
            "import jax; import jax.lax as lax",
        )
    },
}


@pytest.mark.parametrize("answer", ACCEPTED.values(), ids=ACCEPTED)
def test_answers_with_one_possible_meaning_are_accepted(answer):
    assert apply(answer, SOURCE, "gate") == FOUR


def test_an_answer_that_is_python_alone_needs_no_fence():
    edited = apply(f"import jax.numpy as jnp\n\n{FOUR}", SOURCE, "gate")
    assert definitions(edited) == definitions(FOUR)


AMBIGUOUS = {
    "code beside the marker": (EDIT.replace("SEARCH", "SEARCH y = x * SCALE"), "a marker must be"),
    "three brackets": (EDIT.replace("<<<<<<<", "<<<"), "a marker must be"),
    "half of a second block": (EDIT + EDIT.replace("SEARCH", "FIND"), "has no <<<<<<< SEARCH"),
    "another name": (fenced(f"import jax.numpy as np\n{WHOLE}"), "got 'import jax.numpy as np'"),
    "another module": (fenced(f"import numpy as jnp\n{WHOLE}"), "got 'import numpy as jnp'"),
    "a part of a module": (fenced(f"from jax import nn\n{WHOLE}"), "got 'from jax import nn'"),
    "everything": (fenced(f"from math import *\n{WHOLE}"), "got 'from math import *'"),
    "prose around code": (f"I propose:\n\n{FOUR}\nIt is better.", "no code block"),
}


@pytest.mark.parametrize(("answer", "words"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_answers_with_several_possible_meanings_are_refused(answer, words):
    with pytest.raises(EditError, match=re.escape(words)):
        apply(answer, SOURCE, "gate")


def test_names_that_may_be_imported_are_those_that_every_source_has():
    assert GIVEN.keys() == ROOTS


LENGTHY = (
    *("<", "`", "```\n", "```python\n", "~~~\n", "<<<<<<< SEARCH\n", ">>>>>>> REPLACE\n", "\n"),
    *("<think", "<think>", "</think>", "[think", "<a_a_a_a_", "<|channel|>", "</s>", "<think>`"),
    *("```python\n<think>\n</think>\n", "```python\n# <think>\n```\n", "\r", "\u200b"),
)


@pytest.mark.parametrize("piece", LENGTHY)
def test_the_time_to_read_an_answer_is_linear_in_its_length(piece):
    """Ten times the length takes ten times as long; a quadratic parser takes a hundred times."""
    times = []
    for size in (20_000, 200_000):
        answer = piece * (size // len(piece))
        began = time.process_time()
        with pytest.raises(EditError):
            apply(answer, SOURCE, "gate")
        times.append(time.process_time() - began)
    assert times[1] < 40 * times[0] + 0.2
