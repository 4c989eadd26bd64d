"""The ledger: each fold and seed is assigned only once, and no event can be undone."""

import itertools
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoevolve_jax.evidence import ledger as ledger_module
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.ledger import ledger_path, open_ledger
from nanoevolve_jax.evidence.seeds import (
    CONFIRMATION_SEEDS,
    PROMOTE_FOLD,
    SCREEN_FOLD,
    Stage,
    stage_seed,
)


def begin(folder, folds=8, fingerprint="f00d"):
    return open_ledger(folder / "ledger.jsonl", fingerprint, folds)


@pytest.fixture
def ledger(tmp_path):
    """Returns a ledger with two campaigns that happen to share `config.seed`."""
    ledger = begin(tmp_path)
    ledger.register_campaign("first", 7, 1, "mine")
    ledger.register_campaign("second", 7, 2, "yours")
    return ledger


def read(ledger):
    """Returns the bytes of the ledger and of its head, with None for a missing file."""
    paths = (ledger.path, ledger.path.with_suffix(".head.json"))
    return [path.read_bytes() if path.exists() else None for path in paths]


def put(ledger, content, head):
    """Replaces the bytes of the ledger and of its head."""
    for path, data in zip((ledger.path, ledger.path.with_suffix(".head.json")), (content, head),
                          strict=True):  # fmt: skip
        path.unlink(missing_ok=True)
        if data is not None:
            path.write_bytes(data)


def refused(folder, **changes):
    with pytest.raises(EvidenceError) as error:
        begin(folder, **changes)
    message = str(error.value)
    assert str(folder) in message and "\n" not in message
    return message


# Assignments


def test_no_two_confirmations_share_a_fold_or_a_seed(ledger):
    pairs = [("first", "a"), ("second", "a"), ("first", "b"), ("second", "b"), ("second", "c")]
    given_out = [ledger.consume(*pair) for pair in pairs]
    assert [c.number for c in given_out] == [0, 1, 2, 3, 4]
    folds = [SCREEN_FOLD, PROMOTE_FOLD, *(c.fold for c in given_out)]
    assert len(set(folds)) == len(folds)
    seeds = [seed for c in given_out for seed in c.seeds]
    assert len(set(seeds)) == len(seeds) == CONFIRMATION_SEEDS * len(pairs)
    others = {stage_seed(s, 7, i) for s in Stage if s != Stage.CONFIRM for i in range(2048)}
    assert not others & set(seeds)
    assert begin(ledger.path.parent).confirmations() == given_out


def test_a_candidate_always_gets_the_same_confirmation_and_beyond_its_share_it_is_exploratory(
    ledger,
):
    first, again = (ledger.consume("first", candidate) for candidate in "ab")
    second = [ledger.consume("second", candidate) for candidate in "abc"]
    assert [first.exploratory, again.exploratory] == [False, True]
    assert [c.exploratory for c in second] == [False, False, True]
    assert (first.confirmations, {c.confirmations for c in second}) == (1, {2})
    before = read(ledger)
    assert begin(ledger.path.parent).consume("first", "a") == first
    assert read(ledger) == before
    for _ in range(2):
        ledger.finish(first.number, "null")
        assert ledger.consume("first", "a") == first._replace(outcome="null")
    with pytest.raises(EvidenceError, match="must be 'null', got 'a win'"):
        ledger.finish(first.number, "a win")
    with pytest.raises(EvidenceError, match=r"must be one of \[0, 1, 2, 3, 4\], got 9"):
        ledger.finish(9, "a win")


def test_a_campaign_is_entered_once_and_what_was_fixed_at_its_start_stays_fixed(ledger):
    before = read(ledger)
    ledger.register_campaign("first", 7, 1, "renamed")
    with pytest.raises(EvidenceError, match=r"config\.confirm\.max must be 1, .* got 5"):
        ledger.register_campaign("first", 7, 5)
    with pytest.raises(EvidenceError, match=r"config\.seed must be 7, .* got 8"):
        ledger.register_campaign("first", 8, 1)
    with pytest.raises(EvidenceError, match="campaign 'third' is not in the ledger"):
        ledger.consume("third", "a")
    assert ledger.campaigns() == 2 and read(ledger) == before


def test_folds_run_out_and_nothing_is_consumed_then(tmp_path):
    ledger = begin(tmp_path, folds=4)
    ledger.register_campaign("c", 0, 1)
    folds = [ledger.consume("c", candidate).fold for candidate in "ab"]
    before = read(ledger)
    with pytest.raises(EvidenceError, match=r"data\.folds must be .*got 4"):
        ledger.consume("c", "c")
    assert folds == [2, 3] and read(ledger) == before
    assert ledger.consume("c", "a").fold == 2  # a known candidate continues with its fold


def test_seeds_run_out_before_they_repeat(tmp_path):
    ledger = begin(tmp_path, folds=64)
    ledger.register_campaign("c", 65_535, 1)
    seeds = [seed for i in range(32) for seed in ledger.consume("c", str(i)).seeds]
    assert len(set(seeds)) == 32 * CONFIRMATION_SEEDS
    with pytest.raises(EvidenceError, match="32 confirmations have used all seeds"):
        ledger.consume("c", "one more")


def test_another_evaluation_is_refused_by_name(ledger):
    message = refused(ledger.path.parent, fingerprint="beef")
    assert "f00d" in message and "beef" in message


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be read or written" in refused(tmp_path / "file")


# Kills


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """Returns a ledger and the bytes of its two files before and after each event."""
    folder = tmp_path_factory.mktemp("history")
    ledger = begin(folder)
    ledger.path.unlink()
    ledger.path.with_suffix(".head.json").unlink()
    states = [read(ledger)]
    for event in (
        lambda: begin(folder),
        lambda: ledger.register_campaign("c", 3, 1),
        lambda: ledger.consume("c", "a"),
        lambda: ledger.finish(0, "null"),
        lambda: ledger.consume("c", "b"),
    ):
        event()
        states.append(read(ledger))
    return ledger, states


def test_a_kill_between_a_line_and_the_head_keeps_the_line(history):
    ledger, states = history
    for (_, head), later in itertools.pairwise(states):
        put(ledger, later[0], head)
        begin(ledger.path.parent)
        assert read(ledger) == later


def test_a_kill_within_a_line_takes_the_line_back(history):
    ledger, states = history
    for (content, head), (later, _) in itertools.pairwise(states[1:]):
        for cut in (1, 20, len(later) - len(content) - 1):
            put(ledger, later[: len(content) + cut], head)
            again = begin(ledger.path.parent)
            again.register_campaign("d", 4, 1)
            assert ledger.path.read_bytes().startswith(content)
            assert again.consume("d", "a").fold >= 2
            assert begin(ledger.path.parent).confirmations() == again.confirmations()


def test_what_was_killed_before_the_first_line_was_whole_begins_anew(history):
    ledger, states = history
    put(ledger, states[1][0][:-1], None)
    assert begin(ledger.path.parent).campaigns() == 0


def test_a_kill_while_consuming_resumes_with_the_same_fold(ledger, monkeypatch):
    def crash(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ledger_module, "write_sealed", crash)
        with pytest.raises(KeyboardInterrupt):
            ledger.consume("first", "a")
    assert ledger.consume("second", "a").fold == 3
    assert ledger.consume("first", "a").fold == 2


def test_an_event_is_on_disk_before_the_head_counts_it(ledger, monkeypatch):
    happened = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (happened.append("sync"), real_fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (happened.append("name"), real_replace(a, b)))
    ledger.consume("first", "a")
    assert happened == ["sync", "sync", "name", "sync"]  # line, head, new name, folder


# Edits


def test_a_ledger_and_a_head_of_different_times_are_refused(history):
    """Either the ledger lacks its last events, or the head is lost or old."""
    ledger, states = history
    for i, (content, _) in enumerate(states):
        for j, (_, head) in enumerate(states):
            if j > i or i > j + 1:
                put(ledger, content, head)
                assert "do not agree" in refused(ledger.path.parent)


def test_a_tail_after_a_line_that_the_head_does_not_count_is_no_kill(history):
    ledger, states = history
    put(ledger, states[-1][0] + b"{", states[-2][1])
    assert "do not agree" in refused(ledger.path.parent)


def test_another_ledger_of_the_same_length_is_refused(history, tmp_path):
    ledger, states = history
    other = begin(tmp_path)
    other.register_campaign("other", 3, 1)
    put(ledger, read(other)[0], states[2][1])
    assert "events were removed or replaced" in refused(ledger.path.parent)


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_changed_byte_is_refused(history, position, change):
    ledger, states = history
    for which in (0, 1):
        files = [bytearray(content) for content in states[-1]]
        files[which][position % len(files[which])] ^= change
        put(ledger, *files)
        refused(ledger.path.parent)


@given(st.integers(0, 10**6))
def test_a_ledger_cut_anywhere_is_refused(history, length):
    ledger, states = history
    content, head = states[-1]
    put(ledger, content[: length % len(content)], head)
    refused(ledger.path.parent)


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_changed_byte_never_gives_a_fold_twice_after_a_kill(history, position, change):
    """The head does not count the last line yet, but every earlier byte is protected."""
    ledger, states = history
    content, head = bytearray(states[-1][0]), states[-2][1]
    position %= len(content)
    content[position] ^= change
    put(ledger, content, head)
    if position == len(content) - 1:  # without a newline the line counts as unfinished
        assert len(begin(ledger.path.parent).confirmations()) == 1
    else:
        refused(ledger.path.parent)


def test_lines_cannot_be_moved_repeated_or_taken_out(history):
    ledger, states = history
    content, head = states[-1]
    lines = content.splitlines(keepends=True)
    for i in range(len(lines) - 1):
        swapped = [*lines]
        swapped[i : i + 2] = swapped[i + 1], swapped[i]
        for edited in (swapped, lines[:i] + lines[i + 1 :], lines[: i + 1] + lines[i:]):
            put(ledger, b"".join(edited), head)
            assert "its seal must fit" in refused(ledger.path.parent)


def test_an_event_added_by_hand_is_refused(history):
    ledger, states = history
    content, head = states[-1]
    line = json.loads(content.splitlines()[-1]) | {"candidate": "c"}
    put(ledger, content + json.dumps(line).encode() + b"\n", head)
    assert "line 6 is damaged: its seal must fit" in refused(ledger.path.parent)


# Several processes

CONSUME = """
import sys
from pathlib import Path
from nanoevolve_jax.evidence.ledger import open_ledger
ledger = open_ledger(Path(sys.argv[1]), "f00d", 64)
print("ready", flush=True)
sys.stdin.readline()
for i in range(10):
    ledger.consume(sys.argv[2], f"{sys.argv[2]}{i}")
"""


def test_two_processes_at_once_get_different_folds_and_seeds(ledger, repository):
    names = ("first", "second")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CONSUME, str(ledger.path), name],
            cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for name in names
    ]  # fmt: skip
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    confirmations = ledger.confirmations()
    assert sorted(c.campaign for c in confirmations) == ["first"] * 10 + ["second"] * 10
    assert sorted(c.fold for c in confirmations) == list(range(2, 22))
    assert len({seed for c in confirmations for seed in c.seeds}) == 20 * CONFIRMATION_SEEDS


def test_every_evaluation_has_one_ledger_and_its_folder_is_made(tmp_path):
    path = ledger_path(tmp_path / "cache", "f00d")
    assert path == tmp_path / "cache" / "ledgers" / "f00d.jsonl"
    assert path != ledger_path(tmp_path / "cache", "beef")
    open_ledger(path, "f00d", 8).register_campaign("first", 7, 1)
    open_ledger(ledger_path(tmp_path / "cache", "beef"), "beef", 8)
    assert open_ledger(path, "f00d", 8).campaigns() == 1
    assert sorted(p.name for p in path.parent.iterdir()) == [
        *("beef.head.json", "beef.jsonl", "beef.lock"),
        *("f00d.head.json", "f00d.jsonl", "f00d.lock"),
    ]
