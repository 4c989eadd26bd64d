"""Every hostile source is refused for the right reason, in time, without leftovers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hostile import attacks

from nanoevolve_jax.codegen.sandbox import certify, runner
from nanoevolve_jax.codegen.sandbox.runner import Limits
from nanoevolve_jax.codegen.validation.refusals import REASONS

TEXT, COMPUTATION, CLOCK = map(attacks, ("text", "computation", "clock"))
MATRICES = [(16, 32), (32, 16)]
LIMITS = Limits(seconds=40.0, cpu_seconds=60, memory=2 << 30)
# These attacks on the computation run by default. The others are slow because they are many.
FAST = (
    *("never_finite", "wrong_shape", "long_loop", "huge_array", "comment_injection"),
    *("address_in_message", "free_sines"),
)
GENERATED = {
    "ten megabytes": ("x = 1\n" * 1_700_000, "too_long"),
    "one line of ten megabytes": ("#" * 10**7, "too_long"),
    "a null byte": ("def gate(sensors, features, control):\n    return 0.0\0\n", "syntax"),
    "half a character": ("# \ud800\n", "syntax"),
    "nothing": ("", "name"),
    "other line ends": ("def gate(sensors, features, control):\r    return open\r", "name"),
    "a form feed": ("\fimport os\n", "import"),
    "a byte order mark": ("\ufeffimport os\n", "syntax"),
}
REFUSE = """
import json, sys
from hostile import attacks
from nanoevolve_jax.codegen.validation import language
for attack in attacks("text"):
    try:
        language.check(attack.source, attack.slot)
    except language.Refused as error:
        print(json.dumps([attack.name, *error.refusal]))
"""


def validate(slot, source, isolation):
    return certify.validate(slot, source, MATRICES, "float32", LIMITS, isolation)


def named(sources):
    return pytest.mark.parametrize("attack", [pytest.param(a, id=a.name) for a in sources])


@pytest.fixture
def no_sandbox(monkeypatch):
    """Returns the isolation of a sandbox that must not start."""
    monkeypatch.setattr(runner, "run", lambda *args: pytest.fail("a sandbox was started"))
    return runner.isolation(runner.AVAILABLE)


@pytest.fixture
def watched(tmp_path, monkeypatch, repository):
    """Fails the test if a file appears in an exposed folder or a sandbox process remains."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def names():
        places = (tmp_path, Path.home(), Path("/"), repository, repository / "nanoevolve_jax")
        ignored = ("__pycache__", ".", "pytest-")
        return {
            entry.path
            for place in places
            for entry in os.scandir(place)
            if not entry.name.startswith(ignored)
        }

    before = names()
    yield
    assert names() == before
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children]
    assert not [line for line in lines if b"confined.py" in line]


def require_contained(attack, isolation, repeat=False):
    verdict = validate(attack.slot, attack.source, isolation)
    if repeat:  # in another process with another hash seed and other addresses
        assert validate(attack.slot, attack.source, isolation)[:2] == verdict[:2]
    if verdict.refusal is None:
        assert attack.reasons == ["none"]
        assert not re.search("SYSTEM|winner|accepted|API|#|\u202e", verdict.certified.source)
    else:
        assert verdict.certified is None
        assert verdict.refusal.reason in attack.reasons, verdict.refusal
        assert len(verdict.refusal.message.splitlines()) == 1


@named(TEXT)
def test_the_text_of_an_attack_is_refused_before_a_sandbox_starts(attack, no_sandbox):
    require_contained(attack, no_sandbox)


@pytest.mark.parametrize("name", GENERATED)
def test_text_that_is_not_a_program_is_refused(name, no_sandbox):
    source, reason = GENERATED[name]
    assert validate("gate", source, no_sandbox).refusal.reason == reason


def test_the_text_of_an_attack_gets_the_same_refusal_in_every_process(repository):
    environment = {"PYTHONPATH": f"{repository}:{repository / 'tests'}", "PYTHONHASHSEED": "7"}
    line = [sys.executable, "-c", REFUSE]
    refused = subprocess.check_output(line, env=os.environ | environment, text=True)
    here = [
        (attack.name, *validate(attack.slot, attack.source, accepted()).refusal) for attack in TEXT
    ]
    assert [tuple(json.loads(line)) for line in refused.splitlines()] == here
    assert not re.search(r"0x[0-9a-f]{6}|/tmp/", refused)


def accepted():
    return runner.isolation(runner.AVAILABLE)


@named(attack for attack in COMPUTATION if attack.name in FAST)
def test_an_attack_on_the_computation_is_contained(attack, walls, watched):
    require_contained(attack, walls, attack.name == "address_in_message")


@pytest.mark.slow
@named(attack for attack in COMPUTATION if attack.name not in FAST)
def test_every_attack_on_the_computation_is_contained(attack, walls, watched):
    require_contained(attack, walls, repeat=True)


@pytest.mark.slow
@named(CLOCK)
def test_an_attack_without_end_is_ended(attack, walls, watched):
    require_contained(attack, walls)


def test_the_corpus_is_large_and_varied():
    corpus = [*TEXT, *COMPUTATION, *CLOCK]
    assert len(corpus) >= 150
    assert len({attack.purpose for attack in corpus}) > 0.9 * len(corpus)
    assert {reason for attack in corpus for reason in attack.reasons} <= {*REASONS, "none"}
    assert set(FAST) <= {attack.name for attack in COMPUTATION}
