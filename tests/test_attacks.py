"""Every source of the attack corpus is contained: the right reason, in time, and nothing left."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from nanoevolve_jax.codegen.sandbox import certify
from nanoevolve_jax.codegen.sandbox.runner import Limits
from nanoevolve_jax.codegen.validation.refusals import REASONS

FOLDER = Path(__file__).parent / "attacks"
MATRICES = [(16, 32), (32, 16)]
LIMITS = Limits(seconds=40.0, cpu_seconds=60, memory=2 << 30)
SECONDS = {"text": 5.0, "computation": 30.0, "clock": 41.0}
# Of those that need JAX, the ones that are tried by default.
FAST = (
    *("never_finite", "wrong_shape", "long_loop", "huge_array", "comment_injection"),
    *("address_in_message", "free_sines"),
)
# Prints the refusal of every source of a folder that its text shows.
JUDGE = """
import json, pathlib, sys
from nanoevolve_jax.codegen.validation import language
from nanoevolve_jax.codegen.validation.refusals import Refused
found = {}
for name, slot in json.load(sys.stdin):
    try:
        language.check(pathlib.Path(sys.argv[1], name + ".py").read_bytes().decode(), slot)
    except Refused as error:
        found[name] = error.refusal
print(json.dumps(found))
"""
_HEADER = re.compile(r"# tries: (.+)\n# reason: (.+)\n# slot: (\w+)\n# found: (\w+)\n")


class Attack(NamedTuple):
    """One source of the corpus."""

    name: str
    source: str
    tries: str
    reasons: tuple[str, ...]
    slot: str
    found: str


def read(path):
    source = path.read_bytes().decode()
    tries, reasons, slot, found = _HEADER.match(source).groups()
    return Attack(path.stem, source, tries, tuple(reasons.split(" | ")), slot, found)


CORPUS = [read(path) for path in sorted(FOLDER.glob("*.py"))]
# Tried twice, in two processes of the jail with hash seeds and addresses of their own.
TWICE = {a.name for a in CORPUS if a.found == "computation"} - {*FAST} | {"address_in_message"}
GENERATED = {
    "ten megabytes": ("x = 1\n" * 1_700_000, "too_long"),
    "one line of ten megabytes": ("#" * 10**7, "too_long"),
    "a null byte": ("def gate(sensors, features, control):\n    return 0.0\0\n", "syntax"),
    "half a character": ("# \ud800\n", "syntax"),
    "nothing": ("", "name"),
    "other ends of lines": ("def gate(sensors, features, control):\r    return open\r", "name"),
    "a form feed": ("\fimport os\n", "import"),
    "a mark of byte order": ("\ufeffimport os\n", "syntax"),
}


@pytest.fixture
def watched(tmp_path, monkeypatch, repository):
    """Fails the test if anything was written where a candidate might, or is still running."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    places = [tmp_path, FOLDER, repository / "nanoevolve_jax" / "codegen", Path.home()]
    places += [Path("/"), repository]
    before = {place: _names(place) for place in places}
    yield
    assert _children() == []
    after = {place: _names(place) for place in places}
    assert {p: after[p] - before[p] for p in places if after[p] != before[p]} == {}


def _names(place):
    """Names of what lies in a folder, but for what other tests may write meanwhile."""
    own = ("__pycache__", ".", "pytest-")
    with os.scandir(place) as entries:
        return {entry.name for entry in entries if not entry.name.startswith(own)}


def _children():
    """Command lines of processes below this one that belong to a jail."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            line = (folder / "cmdline").read_bytes() if folder.name.isdigit() else b""
            mine = b"/nanoevolve_jax/codegen/sandbox/confined.py\0" in line
            if mine and _descends(int(folder.name)):
                found.append(line)
        except OSError:
            continue
    return found


def _descends(pid):
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return False


def validate(slot, source, walls):
    return certify.validate(slot, source, MATRICES, "float32", LIMITS, walls)


def require_contained(attack, walls):
    verdict = validate(attack.slot, attack.source, walls)
    reason = verdict.refusal.reason if verdict.refusal else "none"
    assert reason in attack.reasons, verdict.refusal
    assert verdict.seconds < SECONDS[attack.found]
    if attack.name in TWICE:
        assert validate(attack.slot, attack.source, walls)[:2] == verdict[:2]
    if verdict.refusal:
        assert verdict.certified is None
        assert len(verdict.refusal.message.splitlines()) == 1
    else:
        assert not re.search("SYSTEM|winner|accepted|API|#", verdict.certified.source)
        assert "\u202e" not in verdict.certified.source


def named(found):
    return pytest.mark.parametrize(
        "attack", [pytest.param(a, id=a.name) for a in CORPUS if found(a)]
    )


@named(lambda attack: attack.found == "text")
def test_what_the_text_shows_is_refused_at_once(attack, walls, watched):
    require_contained(attack, walls)


@named(lambda attack: attack.name in FAST)
def test_what_the_computation_shows_is_refused(attack, walls, watched):
    require_contained(attack, walls)


def test_the_same_text_gets_the_same_refusal_in_every_process():
    request = json.dumps([(a.name, a.slot) for a in CORPUS if a.found == "text"])
    line = [sys.executable, "-c", JUDGE, str(FOLDER)]
    first, second = (
        subprocess.run(
            line,
            input=request,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    )
    assert len(json.loads(first)) > 60
    assert first == second
    assert not re.search(r"0x[0-9a-f]{6}|/tmp/", first)


@pytest.mark.slow
@named(lambda attack: attack.found == "computation" and attack.name not in FAST)
def test_whatever_the_computation_shows_is_refused(attack, walls, watched):
    require_contained(attack, walls)


@pytest.mark.slow
@named(lambda attack: attack.found == "clock")
def test_what_never_ends_is_ended(attack, walls, watched):
    require_contained(attack, walls)


@pytest.mark.parametrize("name", GENERATED)
def test_what_is_no_text_of_a_program_is_refused(name, walls, watched):
    source, reason = GENERATED[name]
    assert validate("gate", source, walls).refusal.reason == reason


def test_the_corpus_is_large_and_says_what_it_tries():
    assert len(CORPUS) >= 60
    assert len({attack.tries for attack in CORPUS}) > 0.9 * len(CORPUS)
    for attack in CORPUS:
        assert attack.found in SECONDS
        assert set(attack.reasons) <= {*REASONS, "none"}, attack.name


def test_some_sources_of_every_kind_are_tried_by_default():
    assert {attack.name for attack in CORPUS} >= set(FAST)
    assert all(attack.found == "computation" for attack in CORPUS if attack.name in FAST)
