"""The archive and the run folder: complete writes, and protection from other runs."""

import copy
import json
import math
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import make_dead, make_record
from specs import specs

from nanoevolve_jax.configs import base
from nanoevolve_jax.evidence import trajectories
from nanoevolve_jax.evolution import archive
from nanoevolve_jax.evolution.archive import ArchiveError, Record
from nanoevolve_jax.evolution.run_folder import describe_run, open_folder
from nanoevolve_jax.execution import journal
from nanoevolve_jax.execution.json_files import write_json
from nanoevolve_jax.execution.machine import gather_facts

CONTRACT = {
    *("id", "parent_id", "generation", "operator", "change", "spec", "status", "failure"),
    *("stage", "seeds", "val_bpb", "train_loss", "score", "cost", "pareto"),
}


def same(a, b):
    """Returns whether two values are equal if NaN equals NaN."""
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def round_trip(record):
    text = json.dumps(archive.record_to_json(record), allow_nan=False)
    return archive.record_from_json(json.loads(text))


@given(
    specs(),
    st.lists(st.tuples(st.floats(), st.floats(0, 1e6), st.integers(0, 9)), min_size=1, max_size=4),
    st.floats(allow_infinity=False, allow_nan=False),
)
def test_a_record_survives_json(spec, runs, score):
    bpb, losses, seeds = map(list, zip(*runs, strict=True))
    failed = not all(map(math.isfinite, bpb))
    record = make_record(
        "c",
        failure={"reason": "non-finite loss", "step": 3} if failed else None,
        spec=spec,
        score=score,
        val_bpb=bpb,
        train_loss=losses,
        seeds=seeds,
        steps=seeds,
        instability=losses,
    )
    finite = [x if math.isfinite(x) else math.nan for x in bpb]
    assert same(round_trip(record), record._replace(val_bpb=finite))


def test_a_dead_record_survives_json_with_nulls_for_what_is_not_finite():
    dead = make_dead("d")
    document = archive.record_to_json(dead)
    assert document["val_bpb"] == [None]
    assert document["score"] is None
    assert document["failure"] == {"reason": "non-finite loss", "step": 3}
    assert same(round_trip(dead), dead)


def test_a_record_holds_the_fields_of_the_contract_and_words_for_switches():
    document = archive.record_to_json(make_record())
    assert set(document) >= CONTRACT
    assert document["spec"]["clip"] == "none"
    assert document["spec"]["control"]["enabled"] == "off"


# A file of generations ---------------------------------------------------------------------

SIZES = [2, 3]  # founders, then children


def generation(number):
    names = [f"g{number}c{i}" for i in range(3)] if number else ["nanochat", "annealing"]
    return [make_record(name, generation=number) for name in names]


@pytest.fixture
def path(tmp_path):
    """Returns an archive of three generations with 2, 3 and 3 records."""
    path = tmp_path / "archive.jsonl"
    for number in range(3):
        archive.append(path, generation(number))
    return path


def test_what_is_appended_is_loaded_in_order(path):
    before = path.read_bytes()
    assert archive.load(path, SIZES) == [*generation(0), *generation(1), *generation(2)]
    assert path.read_bytes() == before


def test_no_file_is_an_empty_archive(tmp_path):
    assert archive.load(tmp_path / "archive.jsonl", SIZES) == []
    assert not (tmp_path / "archive.jsonl").exists()


def test_wherever_a_write_is_cut_whole_generations_remain(path):
    content = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    whole = [ends[1], ends[4], ends[7]]  # end positions of generations 0, 1 and 2
    lengths = [e + d for e in [0, *ends] for d in (-1, 0, 1, 40) if 0 <= e + d <= len(content)]
    for length in lengths:
        path.write_bytes(content[:length])
        complete = sum(end <= length for end in whole)
        records = archive.load(path, SIZES)
        assert records == [r for number in range(complete) for r in generation(number)]
        assert path.read_bytes() == content[: whole[complete - 1] if complete else 0]


def test_after_a_torn_write_appending_goes_on_as_if_nothing_had_happened(path):
    content = path.read_bytes()
    path.write_bytes(content[:-7])
    archive.load(path, SIZES)
    archive.append(path, generation(2))
    assert path.read_bytes() == content


def documents(path):
    return journal.read(path).documents


DAMAGE = {
    "missing": (lambda d: d.pop("status"), "status must be there"),
    "unknown": (lambda d: d.update(extra=1), "got 'extra'"),
    "wrong spec": (lambda d: d["spec"].update(ns_steps=9), "spec.ns_steps must be"),
    "generation": (lambda d: d.update(generation="one"), "generation must be int"),
    "boolean": (lambda d: d.update(generation=True), "generation must be int, got bool"),
    "val_bpb": (lambda d: d.update(val_bpb=2.0), "val_bpb must be array"),
    "number": (lambda d: d.update(val_bpb=["two"]), r"val_bpb\[0\] must be float"),
    "lengths": (lambda d: d.update(val_bpb=[2.0, 2.0]), "one entry per seed"),
    "empty": (lambda d: d.update({n: [] for n in archive._PER_SEED}), "of length >= 1"),
    "cost": (lambda d: d.update(cost=None), "cost must be float"),
    "failure": (lambda d: d.update(failure="it failed"), "failure must be object"),
    "no failure": (lambda d: d.update(val_bpb=[None]), "must have a failure"),
    "pareto": (lambda d: d.update(pareto="yes"), "pareto must be bool"),
    "another status": (lambda d: d.update(status="best"), "status must be valid"),
    "a path for an id": (lambda d: d.update(id="../../x"), "id must be an id"),
    "an id twice": (lambda d: d.update(id="g1c0"), "id must be new, got 'g1c0' again"),
    "no parent": (lambda d: d.update(parent_id=None), "must be the id of an earlier record"),
    "an unknown parent": (lambda d: d.update(parent_id="g9"), "must be the id of an earlier"),
    "a later parent": (lambda d: d.update(parent_id="g2c0"), "must be the id of an earlier"),
    "itself as parent": (lambda d: d.update(parent_id="g1c1"), "must be the id of an earlier"),
    "before its parent": (
        lambda d: d.update(parent_id="g1c0", generation=0),
        "generation of 'g1c1' must be at least its parent's, 1, got 0",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_record_with_a_wrong_field_is_named_by_its_line_even_if_it_is_sealed(path, damage):
    edit, message = DAMAGE[damage]
    found = documents(path)
    edit(found[3])
    journal.rewrite(path, found)
    before = path.read_bytes()
    with pytest.raises(ArchiveError, match=rf"{path.name} line 4 is damaged: .*{message}"):
        archive.load(path, SIZES)
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", [b"", b"{", b"[1]", b"5", b"null", b'"text"', b"\xff\xfe", b"{}"])
def test_a_damaged_line_in_the_middle_is_an_error_and_nothing_is_lost(path, line):
    lines = path.read_bytes().split(b"\n")
    lines[2] = line
    path.write_bytes(b"\n".join(lines))
    before = path.read_bytes()
    with pytest.raises(ArchiveError, match="line 3 is damaged") as caught:
        archive.load(path, SIZES)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


MOVES = {
    "edited": lambda lines, other: [*lines[:3], lines[3].replace(b"1000000.0", b"1000001.0")],
    "repeated": lambda lines, other: [*lines[:4], lines[3], *lines[4:]],
    "swapped": lambda lines, other: [*lines[:3], lines[4], lines[3], *lines[5:]],
    "taken out": lambda lines, other: [*lines[:3], *lines[4:]],
    "of another archive": lambda lines, other: [*lines[:3], other[3], *lines[4:]],
    "without its seal": lambda lines, other: [
        *lines[:3],
        re.sub(rb', "seal": "[0-9a-f]+"', b"", lines[3]),
        *lines[4:],
    ],
}


@pytest.mark.parametrize("move", MOVES)
def test_a_record_that_was_edited_or_moved_is_refused(path, tmp_path, move):
    other = tmp_path / "other.jsonl"
    archive.append(other, [make_record(), make_record("annealing", score=1.0), *generation(1)])
    lines, others = (x.read_bytes().splitlines(keepends=True) for x in (path, other))
    changed = b"".join(MOVES[move](lines, others))
    assert changed != path.read_bytes()
    path.write_bytes(changed)
    for read in (archive.read, archive.load_all, lambda path: archive.load(path, SIZES)):
        with pytest.raises(ArchiveError, match=r"line [45] is damaged: its seal must fit"):
            read(path)
    assert path.read_bytes() == changed


def test_blank_lines_at_the_end_are_no_damage(path):
    content = path.read_bytes()
    path.write_bytes(content + b"\n \n")
    assert archive.load_all(path) == archive.read(path) == archive.load(path, SIZES)
    archive.append(path, generation(3))
    assert path.read_bytes().startswith(content + b"{")
    assert len(archive.load_all(path)) == 11


def test_an_archive_of_an_older_format_is_read_where_that_is_allowed_and_not_added_to(path):
    records = archive.load_all(path)
    lines = [json.dumps(document) for document in documents(path)]
    path.write_text("".join(line + "\n" for line in lines))
    assert archive.read(path, older=True) == records
    for use in (archive.read, lambda path: archive.append(path, generation(3))):
        with pytest.raises(ValueError, match="seal"):
            use(path)


def test_every_field_of_a_record_has_a_kind():
    assert set(archive.RecordDocument.__annotations__) == set(Record._fields)


# The run folder ----------------------------------------------------------------------------

PRINTS = {"corpus": "c0ffee", "tokenizer": "70ce", "rows": "5"}


def describe(devices=2, prints=PRINTS, **changes):
    config = base.get_config()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    facts = gather_facts(prints, devices, config.lanes, config.data_parallel)
    return describe_run(config, facts, "none")


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_folder_opens_again_with_the_same_run(tmp_path):
    folder = tmp_path / "deep" / "run"
    open_folder(folder, describe())
    first = contents(folder)
    open_folder(folder, describe())
    assert contents(folder) == first
    assert set(first) == {"config.json"}
    document = json.loads(first["config.json"])
    assert set(document) == {"format", "config", "versions", "device", "fingerprints"}
    prints = {"corpus", "tokenizer", "calibration", "campaign", "config"}
    assert set(document["fingerprints"]) == prints


FREE = {
    "workdir": "elsewhere",
    "data__cache_dir": "elsewhere",
    "data__corpus": "parquet:elsewhere",  # the fingerprint of the corpus covers the text itself
    "search__generations": 9,
}


@pytest.mark.parametrize("field", FREE)
def test_what_changes_no_record_may_change(tmp_path, field):
    open_folder(tmp_path, describe())
    open_folder(tmp_path, describe(**{field: FREE[field]}))
    config = json.loads((tmp_path / "config.json").read_text())["config"]
    group, _, name = field.rpartition("__")
    assert (config[group] if group else config)[name] == FREE[field]


BOUND = {
    "seed": 1,
    "lanes": 2,
    "train__steps": 7,
    "recipe__matrix_lr": 0.03,
    "model__n_layer": 3,
    "search__population": 9,
    "search__cost_weight": 0.1,
}


@pytest.mark.parametrize("field", BOUND)
def test_another_config_is_refused_with_the_field_and_both_values(tmp_path, field):
    open_folder(tmp_path, describe())
    before = contents(tmp_path)
    with pytest.raises(ArchiveError) as caught:
        open_folder(tmp_path, describe(**{field: BOUND[field]}))
    path = field.replace("__", ".")
    old = base.SETTINGS[path].default
    message = str(caught.value)
    assert (
        f"the same config, got {str(tmp_path)!r}: {path} is {BOUND[field]!r} and was {old!r}"
        in message
    )
    assert "\n" not in message
    assert contents(tmp_path) == before


def test_other_devices_and_versions_are_refused(tmp_path):
    open_folder(tmp_path, describe())
    with pytest.raises(ArchiveError, match=r"devices is 4 and was 2"):
        open_folder(tmp_path, describe(devices=4))
    older = copy.deepcopy(describe())
    older["versions"]["jax"] = "0.0.1"
    older["fingerprints"]["config"] = "older"
    (tmp_path / "config.json").write_text(json.dumps(older))
    with pytest.raises(ArchiveError, match=r"jax is .* and was '0\.0\.1'"):
        open_folder(tmp_path, describe())


@pytest.mark.parametrize("name", ["corpus", "tokenizer"])
def test_other_text_or_tokens_are_refused_by_name(tmp_path, name):
    open_folder(tmp_path, describe())
    with pytest.raises(ArchiveError, match=f"a run with the same {name}, got "):
        open_folder(tmp_path, describe(prints=PRINTS | {name: "0ther"}))


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "{}", '{"fingerprints": 5, "config": {}}']
    + ['{"fingerprints": {}, "config": {"data": "x", "workdir": ""}, "versions": 1, "device": 1}'],
)
def test_a_damaged_config_is_refused_and_kept(tmp_path, text):
    open_folder(tmp_path, describe())
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ArchiveError, match=r"config\.json is damaged"):
        open_folder(tmp_path, describe())
    assert path.read_text() == text


def test_a_folder_of_an_older_format_is_refused_by_name_and_kept(tmp_path):
    old = describe()
    del old["format"]  # the first format had no number
    path = tmp_path / "config.json"
    path.write_text(json.dumps(old))
    with pytest.raises(ArchiveError, match=r"run folder of format 3, got .* of format 1"):
        open_folder(tmp_path, describe())
    assert json.loads(path.read_text()) == old


def test_an_archive_without_a_config_is_refused_and_kept(tmp_path):
    archive.append(tmp_path / "archive.jsonl", generation(0))
    before = contents(tmp_path)
    with pytest.raises(ArchiveError, match=r"must be a new folder or have a config\.json"):
        open_folder(tmp_path, describe())
    assert contents(tmp_path) == before


def test_a_file_is_no_folder(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(
        ArchiveError, match=r"config\.workdir must be a folder that can be written, got .*file'"
    ):
        open_folder(path, describe())
    assert path.read_text() == "mine"


def test_a_json_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="nan"):
        write_json(path, {"a": [1] * 100_000, "b": math.nan})
    assert json.loads(path.read_text()) == {"a": 1}
    events = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("sync"), real_fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("name"), real_replace(a, b)))
    write_json(path, {"a": 2})
    assert events == ["sync", "name"]  # in the other order a crash could leave an empty file
    assert json.loads(path.read_text()) == {"a": 2}


def test_telemetry_is_renamed_into_place(tmp_path, monkeypatch):
    (tmp_path / "telemetry").mkdir()

    def crash(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(trajectories.os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        trajectories.save_telemetry(tmp_path, "c", {"loss": [1.0]})
    assert not (tmp_path / "telemetry" / "c.npz").exists()
