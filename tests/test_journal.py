"""Journals return the appended lines and detect every change."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoevolve_jax.execution import journal
from nanoevolve_jax.execution.json_files import decode
from nanoevolve_jax.execution.plain_files import FileError

LINES = [{"a": 1, "b": [1.5, None, "naïve"]}, {"a": 2}, {}, {"a": 2}]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Returns a journal of these lines; a test that changes it must restore it."""
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    for line in LINES:
        journal.append(path, [line])
    return path


def test_what_is_appended_is_read_however_it_is_divided(path, tmp_path):
    whole = tmp_path / "whole.jsonl"
    last = journal.append(whole, LINES)
    assert whole.read_bytes() == path.read_bytes()
    found = journal.read(whole)
    assert found.documents == LINES
    assert (found.seals[-1], found.size, found.torn) == (last, whole.stat().st_size, 0)
    journal.rewrite(whole, LINES[:2])
    assert journal.read(whole).documents == LINES[:2]


def test_a_name_that_is_repeated_among_many_is_named_at_once():
    names = [f'"{i}": 0' for i in range(30_000)]
    started = time.monotonic()
    with pytest.raises(ValueError, match="'29999' must stand once in an object"):
        decode(f"{{{', '.join([*names, names[-1]])}}}")
    assert time.monotonic() - started < 2.0


def test_a_missing_journal_is_empty(tmp_path):
    assert journal.read(tmp_path / "none.jsonl") == ([], [], [], 0)


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_no_changed_byte_is_read_as_if_it_had_been_written(path, position, change):
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[position % len(content)] ^= change
    path.write_bytes(damaged)
    try:
        found = journal.read(path).documents
        assert found == LINES[: len(found)]  # the last line is torn or blank
        assert len(found) >= len(LINES) - 1
    except FileError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    finally:
        path.write_bytes(content)


def test_wherever_a_write_is_cut_the_next_append_goes_on_after_the_last_whole_line(path, tmp_path):
    content, cut = path.read_bytes(), tmp_path / "cut.jsonl"
    for length in range(len(content) + 1):
        cut.write_bytes(content[:length])
        whole = content[:length].count(b"\n")
        found = journal.read(cut)
        assert found.documents == LINES[:whole]
        assert found.torn == length - found.size
        journal.append(cut, LINES[whole:])
        assert cut.read_bytes() == content


def test_a_long_last_line_is_found_again(tmp_path):
    path = tmp_path / "long.jsonl"
    for line in ({"x": "a" * 300_000}, {"x": "b" * 100_000}, {"x": 1}):
        journal.append(path, [line])
    assert len(journal.read(path).documents) == 3


def test_lines_of_an_older_format_are_read_only_where_that_is_said(tmp_path):
    path = tmp_path / "older.jsonl"
    own = {"a": 1, "seal": journal._own_seal({"a": 1})}
    path.write_text("".join(json.dumps(line) + "\n" for line in (own, {"b": 2})))
    assert journal.read(path, older=True).documents == [{"a": 1}, {"b": 2}]
    with pytest.raises(FileError, match="line 1 is damaged: its seal must fit"):
        journal.read(path)
    path.write_text(json.dumps(own | {"a": 2}) + "\n")
    with pytest.raises(FileError, match="line 1 is damaged: its seal must fit"):
        journal.read(path, older=True)


def test_a_document_that_json_cannot_hold_leaves_the_journal_as_it_is(path):
    content = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        journal.append(path, [{"a": float("nan")}])
    assert path.read_bytes() == content
