"""What `show` prints: figures that were recounted, pages that fit, mistakes in one line."""

import json
import subprocess
import sys

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
from nanoevolve_jax.reporting.naming import named_arm
from nanoevolve_jax.reporting.overview import overview, row
from nanoevolve_jax.show import shown
from nanoevolve_jax.terminal.console import Console
from nanoevolve_jax.terminal.pages import WIDTH, render

LONG = make_dead("g002c00", generation=2, spec=ANNEALING, change="control.bias -0.5 -> 0.25")
GATE = np.linspace(0.1, 0.9, 6)


@pytest.fixture
def folder(tmp_path):
    telemetry = {name: make_columns(GATE) for name in ("annealing", "g001c00")}
    return write_folder(tmp_path / "run", [*family(), LONG], telemetry)


def text(arguments, what="", width=200):
    found, page = shown([str(a) for a in arguments], what)
    return found, render(page, Console(width=width, color_system=None))


def spoken(arguments, *switches):
    """The command in this process; returns its exit code."""
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**dict.fromkeys(switches, True)):
        try:
            show.main([str(argument) for argument in arguments])
        except SystemExit as end:
            return end.code
    return 0


def run(*arguments):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "nanoevolve_jax.show", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


# Pages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "what"),
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
def test_pages_fit_80_columns_and_are_json_too(folder, arguments, what):
    found, said = text([folder, *arguments], what)
    assert max(map(len, said.splitlines())) <= WIDTH
    assert "nan" not in said.replace("nanochat", "").replace("nanoevolve", "")
    assert json.loads(to_text(finite_or_null(found))) == finite_or_null(found)


def test_an_overview_begins_with_the_verdict_and_counts_everyone(folder):
    found, said = text([folder])
    assert said.startswith("Nothing is confirmed, and the search has not ended")
    assert found["candidates"] == sum(found["by_status"].values()) == 5
    assert found["by_status"] == {"baseline": 1, "rejected": 4}
    assert [one["id"] for one in found["best"]] == ["g001c00", "annealing", "nanochat"]
    spent = found["spent"]["search: screening"]
    assert (spent["runs"], spent["failed"]) == (5, 1)
    assert spent["tokens"] == 8 * 128 * (4 * 6 + 3 + 1)  # the failed step was trained on too
    assert "not finished" in said


def test_the_front_is_recounted_from_all_records(folder):
    found, said = text([folder], "front")
    assert [one["id"] for one in found["front"]] == ["g001c00"]
    assert "of 1" not in said
    cheaper = make_record("g003c00", generation=3, cost=5e5, bpb=2.5)
    archive.append(folder / "archive.jsonl", [cheaper])
    assert [one["id"] for one in text([folder], "front")[0]["front"]] == ["g001c00", "g003c00"]


def test_a_long_front_is_cut_and_says_so(tmp_path):
    many = [make_record(f"g001c{i:02d}", cost=1e6 - i, bpb=2.0 + i / 100) for i in range(1, 30)]
    folder = write_folder(tmp_path / "run", [make_record(), *many])
    assert "8 of 30 (--front: all)" in text([folder])[1]
    assert text([folder], "front")[1].count("rejected") == 30


def test_gains_are_means_over_shared_seeds(folder):
    history = read_history(folder)
    more = {"seeds": [0, 7], "train_loss": [3.5] * 2, "steps": [6] * 2, "instability": [0.0] * 2}
    reference = history.baseline._replace(val_bpb=[2.0, 2.2], **more)
    history = history._replace(records=[reference, *history.records[1:]])
    record = history.record("g001c00")
    assert row(history, record)["gain"] == pytest.approx(0.009)
    found = row(history, record._replace(val_bpb=[1.99, 2.17], **more))
    assert (found["gain"], found["seeds"]) == (pytest.approx(0.02), 2)
    assert finite_or_null(row(history, LONG))["gain"] is None


def test_a_candidate_shows_where_it_comes_from_and_what_it_does(folder):
    found, said = text([folder, "g001c00"])
    assert [one["id"] for one in found["lineage"]] == ["nanochat", "annealing", "g001c00"]
    assert "generation 1, adjust_gate_weight: grad_alignment 0.7 -> 1.1" in said
    assert "rises from" in said
    assert found["spec"] == spec_to_json(ANNEALING)
    assert "control.enabled" in said and "control.bias" not in said
    assert "control.bias" in text([folder, "g001c00"], "spec")[1]


def test_a_control_shows_its_recipe_and_a_dead_one_its_failure(folder):
    assert "only the recipe (momentum 0.8335 -> 0.8)" in " ".join(
        text([folder, "g001c01"])[1].split()
    )
    assert "It failed in screening at step 3: non-finite loss." in text([folder, "g002c00"])[1]


def test_promotion_adds_runs_beside_the_baselines_on_the_same_seed(folder):
    records = read_history(folder).records
    more = {"train_loss": [3.5] * 2, "steps": [6] * 2, "instability": [0.0] * 2}
    records[0] = records[0]._replace(seeds=[0, 7], val_bpb=[2.0, 2.2], **more)
    records[2] = records[2]._replace(seeds=[0, 7], val_bpb=[1.99, 2.1], **more)
    archive.rewrite(folder / "archive.jsonl", records)
    runs = text([folder, "g001c00"])[0]["runs"]
    assert [run["stage"] for run in runs] == ["screening", "promotion"]
    assert runs[1]["gain"] == pytest.approx(0.1)


def test_nothing_is_changed(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    text([folder])
    text([folder, "g001c00"])
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Specs by name -----------------------------------------------------------------------------


def test_a_diff_lists_the_fields_that_differ(folder):
    found, said = text([folder, "nanochat", "trust_ratio"], "diff")
    assert found["fields"] == [
        {"field": "trust_ratio", "before": "off", "after": "on", "read": True}
    ]
    assert not found["same_policy"] and "same policy" not in said
    assert "equal in every field" in text([folder, "annealing", "g001c00"], "diff")[1]


def test_a_diff_knows_what_nothing_reads_and_what_a_control_changes(folder, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(spec_to_json(NANOCHAT._replace(clip_threshold=3.0))))
    found, said = text([folder, "nanochat", path], "diff")
    assert found["same_policy"]
    assert "not read" in said and "They are the same policy" in said
    found = text([folder, "nanochat", "g001c01"], "diff")[0]
    assert found["fields"] == [
        {"field": "recipe.momentum", "before": None, "after": 0.8, "read": True}
    ]


def test_presets_stand_on_the_baseline_they_are_named_under(folder):
    tuned = NANOCHAT._replace(momentum=0.8)
    assert named_arm("trust_ratio", tuned).spec == TRUST_RATIO._replace(momentum=0.8)
    assert named_arm(f"{folder}:g001c01", tuned).recipe == {"momentum": 0.8}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "allowed: a JSON file"),
        ("[]", "allowed: a JSON object"),
        (
            spec_to_json(NANOCHAT) | {"momentum": 3},
            r"mine.json: spec.momentum is 3; allowed: a num",
        ),
        ({"spec": spec_to_json(NANOCHAT), "recipe": {"momentum": 0.8}}, "a control"),
    ],
)
def test_a_spec_file_that_cannot_be_used_is_named(tmp_path, content, message):
    path = tmp_path / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(SpecError, match=message):
        named_arm(str(path), NANOCHAT)


def test_an_unknown_name_is_answered_with_near_ones(folder):
    with pytest.raises(SpecError, match="such as annealing"):
        named_arm("anealing", NANOCHAT)
    with pytest.raises(SpecError, match=r"or an id, such as g001c0"):
        named_arm("g001c0", NANOCHAT, read_history(folder))


# The command -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{empty}"], "allowed: the folder of a search"),
        (["{half}"], "in which no generation is finished"),
        (["{run}", "g001c99"], "candidate is 'g001c99'"),
    ],
)
def test_mistakes_end_in_one_line_with_exit_code_2(folder, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    half = write_folder(tmp_path / "half", [])
    (half / "archive.jsonl").unlink()
    places = {"empty": tmp_path / "empty", "half": half, "run": folder}
    result = run(*(argument.format(**places) for argument in arguments))
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "switches", "message"),
    [
        ([], (), "arguments are 'nothing'; allowed: DIR, or DIR ID"),
        (["a", "b", "c"], (), "arguments are 'a b c'; allowed: DIR, or DIR ID"),
        (["a", "b"], ("diff",), "arguments are 'a b --diff'; allowed: DIR --diff and two of"),
        (["a"], ("spec",), "allowed: DIR ID --spec"),
        (["a", "b"], ("front",), "allowed: DIR --front"),
        (["a"], ("front", "spec"), "arguments are 'a --front --spec'; allowed: DIR --front"),
    ],
)
def test_arguments_that_do_not_fit_are_answered_with_those_that_do(
    arguments, switches, message, capsys
):
    assert spoken(arguments, *switches) == 2
    out, err = capsys.readouterr()
    assert not out and message in err and err.count("\n") == 1


def test_the_command_prints_a_page_or_json(folder, capsys):
    assert spoken([folder]) == 0
    assert "Pareto front" in capsys.readouterr().out
    assert spoken([folder, "g001c00"], "json") == 0
    assert json.loads(capsys.readouterr().out)["id"] == "g001c00"


def test_a_reader_that_goes_away_is_no_mistake(folder):
    command = [sys.executable, "-m", "nanoevolve_jax.show", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=120) == command_module.NO_READER


def test_thousands_of_candidates_are_shown(tmp_path):
    records = [make_record(f"g001c{i}", bpb=2.0 + i / 1e4, score=-i / 1e4) for i in range(3000)]
    history = read_history(write_folder(tmp_path / "run", [make_record(), *records]))
    assert len(overview(history, 5)["best"]) == 5
