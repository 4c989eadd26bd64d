"""The `show` command: recomputed figures, pages that fit, and errors in one line."""

import json

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from histories import family, make_columns, write_folder
from records import make_dead, make_record

from nanoevolve_jax import command as command_module
from nanoevolve_jax import show
from nanoevolve_jax.evolution import archive
from nanoevolve_jax.execution.json_files import finite_or_null, to_text
from nanoevolve_jax.policy.spec import ANNEALING, NANOCHAT, TRUST_RATIO
from nanoevolve_jax.policy.spec_json import SpecError, spec_to_json
from nanoevolve_jax.reporting.history import read_history
from nanoevolve_jax.reporting.policies import named_arm
from nanoevolve_jax.reporting.summary import overview, row
from nanoevolve_jax.terminal.console import Console
from nanoevolve_jax.terminal.pages import WIDTH, render, view

FAILED = make_dead("g002c00", generation=2, spec=ANNEALING, change="control.bias -0.5 -> 0.25")
GATE = np.linspace(0.1, 0.9, 6)
TWO_SEEDS = {"train_loss": [3.5] * 2, "steps": [6] * 2, "instability": [0.0] * 2}


@pytest.fixture
def folder(tmp_path):
    telemetry = {name: make_columns(GATE) for name in ("annealing", "g001c00")}
    return write_folder(tmp_path / "run", [*family(), FAILED], telemetry)


def viewed(arguments, kind=""):
    """Returns the data and the text of a page."""
    data, page = view([str(argument) for argument in arguments], kind)
    return data, render(page, Console(width=200, color_system=None))


def run_main(arguments, *switches):
    """Runs the command in this process and returns its exit code."""
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**dict.fromkeys(switches, True)):
        try:
            show.main([str(argument) for argument in arguments])
        except SystemExit as end:
            return end.code
    return 0


# Pages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ([], ""),
        ([], "front"),
        (["g001c00"], ""),
        (["g001c01"], "spec"),
        (["g002c00"], ""),
        (["nanochat"], ""),
        (["annealing", "trust_ratio"], "diff"),
    ],
)
def test_pages_fit_80_columns_are_json_too_and_change_nothing(folder, arguments, kind):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    data, text = viewed([folder, *arguments], kind)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "nan" not in text.replace("nanochat", "").replace("nanoevolve", "")
    assert json.loads(to_text(finite_or_null(data))) == finite_or_null(data)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_overview_counts_candidates_and_compute(folder):
    data, text = viewed([folder])
    assert " ".join(text.split()).startswith(data["verdict"]) and "not finished" in text
    assert data["candidates"] == 5 and data["by_status"] == {"baseline": 1, "rejected": 4}
    assert [row["id"] for row in data["best"]] == ["g001c00", "annealing", "nanochat"]
    tokens = 8 * 128 * (4 * 6 + 3 + 1)  # includes the step that failed
    assert data["spent"]["search: screening"] == {"runs": 5, "failed": 1, "tokens": tokens}


def test_the_front_is_recounted_from_all_records(folder):
    assert [row["id"] for row in viewed([folder], "front")[0]["front"]] == ["g001c00"]
    archive.append(folder / "archive.jsonl", [make_record("g003c00", cost=5e5, bpb=2.5)])
    names = [row["id"] for row in viewed([folder], "front")[0]["front"]]
    assert names == ["g001c00", "g003c00"]


def test_a_long_front_is_shortened(tmp_path):
    many = [make_record(f"g001c{i:02d}", cost=1e6 - i, bpb=2.0 + i / 100) for i in range(1, 30)]
    folder = write_folder(tmp_path / "run", [make_record(), *many])
    assert "8 of 30" in viewed([folder])[1]
    assert viewed([folder], "front")[1].count("rejected") == 30


def test_gains_are_means_over_shared_seeds(folder):
    history = read_history(folder)
    reference = history.baseline._replace(seeds=[0, 7], val_bpb=[2.0, 2.2], **TWO_SEEDS)
    history = history._replace(records=[reference, *history.records[1:]])
    record = history.record("g001c00")
    assert row(history, record)["gain"] == pytest.approx(0.009)
    both = row(history, record._replace(seeds=[0, 7], val_bpb=[1.99, 2.17], **TWO_SEEDS))
    assert (both["gain"], both["seeds"]) == (pytest.approx(0.02), 2)
    assert finite_or_null(row(history, FAILED))["gain"] is None


def test_a_candidate_is_shown_with_lineage_behaviour_and_spec(folder):
    data, text = viewed([folder, "g001c00"])
    assert [step["id"] for step in data["lineage"]] == ["nanochat", "annealing", "g001c00"]
    assert data["lineage"][2]["origin"] in text and "rises from" in text
    assert data["spec"] == spec_to_json(ANNEALING)
    assert "control.enabled" in text and "control.bias" not in text
    assert "control.bias" in viewed([folder, "g001c00"], "spec")[1]
    assert "momentum 0.8335 -> 0.8" in viewed([folder, "g001c01"])[1]
    assert "failed in screening at step 3" in viewed([folder, "g002c00"])[1]


def test_runs_of_promotion_are_paired_with_the_baseline(folder):
    records = read_history(folder).records
    for i, bpb in ((0, [2.0, 2.2]), (2, [1.99, 2.1])):
        records[i] = records[i]._replace(seeds=[0, 7], val_bpb=bpb, **TWO_SEEDS)
    archive.rewrite(folder / "archive.jsonl", records)
    runs = viewed([folder, "g001c00"])[0]["runs"]
    assert [run["stage"] for run in runs] == ["screening", "promotion"]
    assert runs[1]["gain"] == pytest.approx(0.1)


def test_thousands_of_candidates_are_shown(tmp_path):
    records = [make_record(f"g001c{i}", bpb=2.0 + i / 1e4, score=-i / 1e4) for i in range(2000)]
    history = read_history(write_folder(tmp_path / "run", [make_record(), *records]))
    assert len(overview(history, 5)["best"]) == 5


# Specs by name -----------------------------------------------------------------------------


def test_a_diff_lists_fields_recipe_values_and_whether_they_have_an_effect(folder, tmp_path):
    def fields(*names):
        return viewed([folder, *names], "diff")[0]

    assert fields("nanochat", "trust_ratio")["fields"] == [
        {"field": "trust_ratio", "before": "off", "after": "on", "read": True}
    ]
    assert fields("nanochat", "g001c01")["fields"] == [
        {"field": "recipe.momentum", "before": None, "after": 0.8, "read": True}
    ]
    assert fields("annealing", "g001c00")["fields"] == []
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(spec_to_json(NANOCHAT._replace(clip_threshold=3.0))))
    unread = fields("nanochat", path)
    assert unread["same_policy"] and not unread["fields"][0]["read"]
    assert not fields("nanochat", "trust_ratio")["same_policy"]


def test_presets_are_derived_from_the_given_baseline(folder):
    tuned = NANOCHAT._replace(momentum=0.8)
    assert named_arm("trust_ratio", tuned).spec == TRUST_RATIO._replace(momentum=0.8)
    assert named_arm(f"{folder}:g001c01", tuned).recipe == {"momentum": 0.8}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "mine.json"),
        ("[]", "mine.json"),
        (spec_to_json(NANOCHAT) | {"momentum": 3}, r"mine.json.*spec.momentum"),
        ({"spec": spec_to_json(NANOCHAT), "recipe": {"momentum": 0.8}}, "a control"),
    ],
)
def test_an_unusable_spec_file_is_named(tmp_path, content, message):
    path = tmp_path / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(SpecError, match=message):
        named_arm(str(path), NANOCHAT)


def test_an_unknown_name_is_answered_with_similar_ones(folder):
    with pytest.raises(SpecError, match="such as annealing, got 'anealing'"):
        named_arm("anealing", NANOCHAT)
    with pytest.raises(SpecError, match=r"or an id, such as g001c0"):
        named_arm("g001c0", NANOCHAT, read_history(folder))


# The command -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "switches", "usage"),
    [
        ([], (), "DIR, or DIR ID, got 'nothing'"),
        (["a", "b", "c"], (), "DIR, or DIR ID, got 'a b c'"),
        (["a", "b"], ("diff",), "DIR --diff and two of"),
        (["a"], ("spec",), "DIR ID --spec"),
        (["a", "b"], ("front",), "DIR --front"),
        (["a"], ("front", "spec"), "got 'a --front --spec'"),
    ],
)
def test_wrong_arguments_are_answered_with_the_usage(arguments, switches, usage, capsys):
    assert run_main(arguments, *switches) == 2
    out, err = capsys.readouterr()
    assert not out and usage in err and err.count("\n") == 1


def test_the_command_prints_a_page_or_json(folder, capsys):
    assert run_main([folder]) == 0
    assert "Pareto front" in capsys.readouterr().out
    assert run_main([folder, "g001c00"], "json") == 0
    assert json.loads(capsys.readouterr().out)["id"] == "g001c00"


def test_an_error_is_one_line_with_exit_code_2(shell, folder):
    status, out, err = shell("show", folder, "g001c99", folder=folder)
    assert (status, out) == (2, "") and "'g001c99'" in err
    assert err.startswith("error: ") and err.count("\n") == 1


def test_a_pipe_without_a_reader_is_not_an_error(shell, folder):
    status, _, err = shell("show", folder, folder=folder, streams={1: "gone"})
    assert (status, err) == (command_module.NO_READER, "")
