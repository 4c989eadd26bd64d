"""The worst habits of the project's earlier prose stay out of code, comments, messages and docs."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

THIS = "tests/test_plain_english.py"
# Folders and files that have not been rewritten. The list may only shrink.
NOT_YET: tuple[str, ...] = ("tests/",)
# Hostile sources, sources of evolution and recorded answers are data, not prose.
DATA = ("tests/attacks/", "nanoevolve_jax/policy/built_in/", "results/", "LICENSE")
PATTERNS = {
    "use `except` or `without`": r"\bbut for\b|\bsave (that|for|where)\b",
    "use `so that ... not`": r"\blest\b",
    "use `because`": r"[,;:] for (it|they|there|this|that|these|those|nothing|no|an?|the)( \w+)? "
    r"(is|are|was|were|has|have|can|does|do|would|will|may)\b",
    "use `is not a` or `has no`": r"(?<!here\s)\b(is|are|was|were) no (?!longer|more|less|fewer|"
    r"better|worse|larger|smaller|slower|faster|easier|harder)[a-z]+",
    "use `per` or `for each`": r"\b(one|two|three|four|once|twice) an? (candidate|run|seed|step|"
    r"core|slot|file|proposal|matrix|generation|line|worker|device|batch)\b|\bin so many\b",
    "write the sentence out": r"[;:(] ?likewise\b|\bsee above\b",
    "name the thing first": r"^\s+\w+( \([^)\n]*\))?: [Oo]f (the|every|each|all|an?)\b|"
    r"# of (the|a|an|every|each|this|its)\b",
    "software does not speak or hear": r"\b(hears?|heard|told|tells|believes?|believed)\b",
    "say who": r"\b([Ww]hoever|[Nn]obody|[Ss]omebody|[Aa]nybody|whatever it is)\b",
}
NAMES = {
    *("inmate", "greeting", "crown", "books", "shake", "twins", "strangers", "aim", "brief"),
    *("tries", "standing", "hear", "told", "asking", "found", "made", "those"),
}


def sources(repository: Path) -> Iterator[tuple[str, str]]:
    """Yields the path and text of every Python file, page, template and config under git."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        wanted = name.endswith((".py", ".md", ".jinja", ".toml", ".js", ".sh", ".yml"))
        path = repository / name
        if wanted and name != THIS and not name.startswith((*DATA, *NOT_YET)) and path.exists():
            yield name, path.read_text()


def phrases(text: str) -> Iterator[tuple[int, str, str]]:
    """Yields (line, advice, matched words) of every pattern; a blank also matches a line break."""
    for advice, pattern in PATTERNS.items():
        for match in re.finditer(pattern.replace(" ", r"[\s#]+"), text, re.MULTILINE):
            yield text.count("\n", 0, match.start()) + 1, advice, " ".join(match[0].split())


def identifiers(text: str) -> Iterator[tuple[int, str]]:
    """Yields (line, name) of every name in a Python text that says too little."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            name = node.name
        elif isinstance(node, ast.arg):
            name = node.arg
        else:
            continue
        if name.lstrip("_") in NAMES:
            yield node.lineno, name


def test_prose_uses_everyday_words_and_whole_sentences(repository):
    assert not [
        f"{name}:{line}: {words!r}: {advice}"
        for name, text in sources(repository)
        for line, advice, words in phrases(text)
    ]


def test_names_say_what_they_hold(repository):
    assert not [
        f"{name}:{line}: {word}"
        for name, text in sources(repository)
        if name.endswith(".py")
        for line, word in identifiers(text)
    ]
    stems = {Path(name).stem for name, _ in sources(repository)}
    assert not stems & NAMES


@pytest.mark.parametrize(
    "text",
    [
        "trains all but for one",
        "# one a candidate",
        "This is no\n    policy.",
        "it ends, for there is nothing left",
        "    workdir: of the run.",
        "the callback is told of it",
        "x = 1  # of the baseline",
    ],
)
def test_a_habit_is_noticed(text):
    assert list(phrases(text))


@pytest.mark.parametrize("text", ["There is no file.", "It is no longer used.", "Waits for it."])
def test_plain_english_passes(text):
    assert not list(phrases(text))
