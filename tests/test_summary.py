"""Verdicts and lineages in words, and the reading of run folders."""

import numpy as np
import pytest
from histories import family, make_history, write_folder
from records import make_record

from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evolution import archive
from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.policy.spec import FIELDS
from nanoevolve_jax.reporting.descriptions import lineage, short_name, shorten
from nanoevolve_jax.reporting.history import read_history
from nanoevolve_jax.reporting.summary import gains, verdict, win_level

PICKED = {"candidate": "g001c00", "comparator": "nanochat"}


def promoted(bpb=(1.991, 1.985, 1.975)):
    """Returns records after promotion added two fresh seeds to the child and the baseline."""
    records = family()
    more = {"seeds": [0, 7, 8], "train_loss": [3.5] * 3, "steps": [6] * 3}
    more |= {"instability": [0.01] * 3}
    changed = {
        "nanochat": records[0]._replace(val_bpb=[2.0, 2.0, 2.0], **more),
        "g001c00": records[2]._replace(val_bpb=list(bpb), status="promoted", **more),
    }
    return [changed.get(record.id, record) for record in records]


def make_card(name="g001c00", *, mean=0.01, outcome="win", level=3):
    test = {"mean": mean, "low": mean - 0.002, "high": mean + 0.002, "p": 0.001, "n": 8}
    tested = {"test": test, "pairs": 8, "gain_in_sigma": 2.0, "outcome": outcome, "reason": "why"}
    return {
        "id": name,
        "verdict": {"label": "better constants"},
        "retuned_baseline": False,
        "exploratory": False,
        "attribution": None,
        "confirmation": tested,
        "level": {"level": level, "missing": None},
    }


@pytest.mark.parametrize(
    ("records", "fields", "level", "parts"),
    [
        (family(), {}, "0", ["Nothing is confirmed", "0.0090 bpb better", "untuned baseline"]),
        (family(), {"summary": None}, "0", ["has not ended", "g001c00 screened 0.0090"]),
        (promoted(), {"promotion": PICKED}, "1", ["0.0200 bpb better", "2 fresh seeds"]),
        (promoted((1.9, 2.01, 2.03)), {"promotion": PICKED}, "1", ["0.0200 bpb worse"]),
        (family(), {"promotion": PICKED | {"candidate": None}}, "1", ["selected no candidate"]),
        (promoted(), {"cards": {"g001c00": make_card()}}, "3", ["beats", "+0.0100 bpb"]),
        (
            promoted(),
            {"cards": {"g001c00": make_card(outcome="null", level=1)}},
            "1",
            ["not distinguishable"],
        ),
        (family(), {"promotion": PICKED | {"candidate": None}, "calibration": None}, "unknown", []),
    ],
)
def test_a_verdict_names_result_and_win_level(tmp_path, records, fields, level, parts):
    calibrated = bool({"promotion", "cards"} & fields.keys())
    sentence = verdict(make_history(tmp_path, records, calibrated=calibrated, **fields))
    assert f"(win level {level}" in sentence and sentence.count("win level") == 1
    for part in parts:
        assert part in sentence


def test_a_search_without_a_gain_names_no_candidate(tmp_path):
    records = [make_record(status="baseline"), make_record("g001c00", bpb=2.1, score=-0.1)]
    sentence = verdict(make_history(tmp_path, records))
    assert "none of 1 candidates" in sentence and "g001c00" not in sentence


@pytest.mark.parametrize(("auc", "repeat"), [(0.8, 0.0), (0.95, 1e-4)])
def test_an_evaluator_that_fails_its_own_test_has_level_0(tmp_path, auc, repeat):
    calibration = {"panel": {"auc": auc}, "noise": {"repeat_difference": repeat}}
    history = make_history(tmp_path, family(), calibrated=True)._replace(calibration=calibration)
    assert win_level(history)[0] == 0


def test_the_card_of_the_promoted_candidate_takes_precedence(tmp_path):
    cards = {"g009c00": make_card("g009c00"), "g001c00": make_card(outcome="null", level=1)}
    history = make_history(tmp_path, promoted(), calibrated=True, cards=cards)
    assert verdict(history).startswith("g001c00 ")
    del cards["g001c00"]
    assert verdict(history).startswith("g009c00 beats")


def test_gains_are_paired_by_seed_and_not_by_position():
    reference = make_record(seeds=[3, 1], val_bpb=[2.0, 3.0])
    record = make_record("a", seeds=[1, 2, 3], val_bpb=[2.5, 9.0, 2.1])
    np.testing.assert_allclose(gains(record, reference), [0.5, -0.1])


def test_a_lineage_has_one_line_per_ancestor():
    founder, preset, child = lineage(family(), "g001c00")
    assert "baseline" in founder
    assert preset == "generation 0, preset annealing: gate off -> on"
    assert child == "generation 1, adjust_gate_weight: grad_alignment 0.7 -> 1.1"
    assert "recipe momentum 0.8335 -> 0.8 (control" in lineage(family(), "g001c01")[-1]


def test_short_names_are_unique_and_replace_every_path_of_a_change():
    assert len({short_name(path) for path in FIELDS}) == len(FIELDS)
    change = "recipe.embedding_lr 0.3 -> 0.2; control.aggressive.clip_threshold 2.0 -> 1.5"
    assert shorten(change) == "recipe embedding_lr 0.3 -> 0.2; aggressive clip_threshold 2.0 -> 1.5"


# Run folders -------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    names = ("nanochat", "g001c00", "g001c01")
    return write_folder(tmp_path / "run", [make_record(name) for name in names])


def test_an_incomplete_line_is_ignored_and_kept(folder):
    path = folder / "archive.jsonl"
    content = path.read_bytes()
    path.write_bytes(content + content[:100])
    assert [r.id for r in read_history(folder).records] == ["nanochat", "g001c00", "g001c01"]
    assert path.read_bytes() == content + content[:100]


def test_an_unknown_candidate_is_named(folder):
    with pytest.raises(ArchiveError, match=r"candidate must be an id in .*, got 'g9'"):
        read_history(folder).record("g9")


@pytest.mark.parametrize(
    ("file", "content", "error", "message"),
    [
        ("config.json", None, ArchiveError, "DIR must be the run folder of a search, got"),
        ("archive.jsonl", None, ArchiveError, "at least one finished generation"),
        ("summary.json", "{", ArchiveError, "summary.json"),
        ("promotion.json", "{}", EvidenceError, "promotion.json"),
    ],
)
def test_a_missing_or_damaged_file_is_named(folder, file, content, error, message):
    (folder / file).unlink(missing_ok=True)
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(error, match=message):
        read_history(folder, "DIR")


@pytest.mark.parametrize("status", ["promoted", "winner"])
def test_the_chosen_candidate_is_the_one_that_evidence_selected(folder, status):
    records = read_history(folder).records
    records[2] = records[2]._replace(status=status)
    archive.rewrite(folder / "archive.jsonl", records)
    assert read_history(folder).chosen.id == "g001c01"
