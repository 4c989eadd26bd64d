"""Reading run folders: what is whole is read, what is damaged is named, nothing is changed."""

import json

import pytest
from nanoevolve_jax.configs import screen
from records import make_record

from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evolution import archive
from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.reporting.history import read_history


@pytest.fixture
def folder(tmp_path):
    description = {"config": screen.get_config().to_dict(), "versions": {}, "device": {}}
    (tmp_path / "config.json").write_text(json.dumps(description))
    names = ("nanochat", "g001c00", "g001c01")
    archive.append(tmp_path / "archive.jsonl", [make_record(name) for name in names])
    return tmp_path


def test_an_unfinished_line_is_left_out_and_left_there(folder):
    path = folder / "archive.jsonl"
    content = path.read_bytes()
    path.write_bytes(content + content[:100])
    assert [record.id for record in read_history(folder).records] == [
        *("nanochat", "g001c00", "g001c01")
    ]
    assert path.read_bytes() == content + content[:100]


def test_an_unknown_candidate_is_named(folder):
    with pytest.raises(ArchiveError, match="candidate is 'g9'; allowed: an id of"):
        read_history(folder).record("g9")


def test_a_folder_without_a_search_is_named(tmp_path):
    with pytest.raises(ArchiveError, match=r"DIR is .*; allowed: the folder of a search"):
        read_history(tmp_path, "DIR")


def test_a_folder_without_a_finished_generation_is_named(folder):
    (folder / "archive.jsonl").unlink()
    with pytest.raises(ArchiveError, match="in which no generation is finished"):
        read_history(folder)


def test_a_damaged_file_is_named(folder):
    (folder / "summary.json").write_text("{")
    with pytest.raises(ArchiveError, match=r"summary.json cannot be read"):
        read_history(folder)
    (folder / "summary.json").unlink()
    (folder / "promotion.json").write_text("{}")
    with pytest.raises(EvidenceError, match=r"promotion.json"):
        read_history(folder)


@pytest.mark.parametrize("status", ["promoted", "winner"])
def test_the_chosen_one_is_whom_evidence_chose(folder, status):
    records = read_history(folder).records
    records[2] = records[2]._replace(status=status)
    archive.rewrite(folder / "archive.jsonl", records)
    assert read_history(folder).chosen.id == "g001c01"
