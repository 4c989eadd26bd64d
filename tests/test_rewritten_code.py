"""Rewritten functions in show, report, comparison, card and replay."""

import html
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from certified_code import BLEND, SOURCES, certify, code_of, write_campaign
from histories import family, make_columns, save, write_folder
from test_search import SETTINGS, make_config, write_corpus

from nanoevolve_jax import compare, replay, site
from nanoevolve_jax.codegen.sandbox.certify import matrices_of
from nanoevolve_jax.configs import replay as replay_config
from nanoevolve_jax.configs import screen
from nanoevolve_jax.evidence import page as card_page
from nanoevolve_jax.evidence.card import KIND
from nanoevolve_jax.evidence.comparison import Arm
from nanoevolve_jax.evidence.runs import read_runs
from nanoevolve_jax.evidence.sealed import read_sealed, write_sealed
from nanoevolve_jax.evolution import proposals
from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.execution.json_files import finite_or_null, to_text
from nanoevolve_jax.policy.certified import CertificateError
from nanoevolve_jax.policy.spec import ANNEALING, NANOCHAT
from nanoevolve_jax.reporting import page, rewritten_code
from nanoevolve_jax.reporting.candidates import spec_fields
from nanoevolve_jax.reporting.descriptions import constant_differences, shared_with_nanochat
from nanoevolve_jax.reporting.explanation import explain
from nanoevolve_jax.reporting.history import read_history
from nanoevolve_jax.reporting.page import report_sections
from nanoevolve_jax.reporting.policies import difference, distinct_arms, same_policy
from nanoevolve_jax.terminal.console import Console
from nanoevolve_jax.terminal.pages import WIDTH, render, view

EVIL = "<script>alert(1)</script> \x1b[31m & \"'"
ADDED = "+    ahead = x + 0.8 * (buffer - x)"
REMOVED = "-    ahead = x + knobs.momentum * (buffer - x)"


@pytest.fixture(scope="module")
def blend():
    return certify(BLEND, "direction", [(8, 8)])


@pytest.fixture(scope="module")
def gate():
    return certify(SOURCES["gate"], "gate")


@pytest.fixture
def folder(tmp_path, blend):
    return write_campaign(tmp_path / "run", blend, message=EVIL)


def viewed(arguments, kind="", color=None):
    """Returns the data and the text of a page."""
    data, page = view([str(a) for a in arguments], kind)
    console = Console(width=200, color_system=color, force_terminal=bool(color))
    return data, render(page, console)


def one_line(text):
    return " ".join(text.split())


# Show --------------------------------------------------------------------------------------


def test_a_candidate_shows_author_cost_certificate_and_diff(folder, blend):
    data, text = viewed([folder, "p0000"])
    (function,) = data["code"]
    expected = {
        **{"slot": "direction", "certificate": blend.id, "called": True, "written_in": "p0000"},
        **{"proposal": 0, "provider": "scripted", "cost_over_built_in": 2.0},
    }
    assert {name: function[name] for name in expected} == expected
    for part in (
        "by scripted in p0000 for 2 calls, 1,200 + 34 tokens, $0.2500",
        f"Certificate {blend.id}; checks passed: language, trace, export",
        "code of direction rewritten by scripted ($0.2500)",
    ):
        assert part in one_line(text)
    assert ADDED in text and REMOVED in text and "--- parent" not in text
    assert max(map(len, text.splitlines())) <= WIDTH
    assert json.loads(to_text(finite_or_null(data))) == finite_or_null(data)


def test_a_mutant_shows_the_code_that_it_inherited(folder):
    (function,) = viewed([folder, "p0000m1"])[0]["code"]
    assert function["written_in"] == "p0000" and function["diff"]
    assert viewed([folder, "nanochat"])[0]["code"] == []


def test_a_diff_is_coloured_only_where_there_are_colours(folder):
    coloured = viewed([folder, "p0000"], color="standard")[1]
    assert f"\x1b[32m{ADDED}" in coloured and f"\x1b[31m{REMOVED}" in coloured
    assert "\x1b" not in viewed([folder, "p0000"])[1]


def test_an_overview_counts_proposals(folder):
    data, text = viewed([folder])
    assert data["code"]["proposals"] == 2 and data["code"]["reasons"] == {"import": 1}
    assert data["code"]["providers"]["other"]["dollars"] == 0.5
    assert "1 trained, 1 rejected" in one_line(text)
    assert "4 calls, 2,400 + 68 tokens, $0.7500" in one_line(text)


def test_without_code_mutation_nothing_is_said_about_code(tmp_path):
    folder = write_folder(tmp_path / "run", family())
    data, text = viewed([folder])
    assert data["code"] is None and "proposal" not in text
    assert "rewritten" not in viewed([folder, "g001c00"])[1].lower()
    assert "code" not in report_sections(read_history(folder))


def test_a_campaign_without_a_finished_proposal_says_so(folder):
    history = read_history(folder)._replace(proposals=[])
    section = report_sections(history)["code"]
    assert section.sentences == ["No proposal is finished yet."]
    assert not section.groups and not section.tables and not section.diffs


def test_a_damaged_journal_of_proposals_is_named(folder):
    (folder / proposals.FILE).write_text('{"number": 7}\n')
    with pytest.raises(ArchiveError, match=r"proposals.jsonl line 1"):
        read_history(folder)


def test_two_candidates_are_compared_by_their_sources(folder):
    data, text = viewed([folder, "nanochat", "p0000"], "diff")
    (change,) = data["code"]
    assert (change["before"], change["same_computation"]) == (None, False)
    lines = list(rewritten_code.diff_lines(change["diff"]))
    assert [text for kind, text in lines if kind in ("added", "removed")] == [REMOVED, ADDED]
    assert not data["same_policy"] and ADDED in text
    assert viewed([folder, "p0000", "p0000m1"], "diff")[0]["code"] == []


def test_control_characters_of_a_diff_are_replaced():
    lines = list(rewritten_code.diff_lines("--- a\n+++ b\n+x\x1b[2J\r\u2028y"))
    assert lines == [("added", "+x?[2J??y")]


# Behaviour ---------------------------------------------------------------------------------


def test_nothing_is_claimed_about_the_effect_of_inputs_of_rewritten_code():
    spec = NANOCHAT._replace(ns_steps=4, nesterov=0)
    assert len(constant_differences(spec, NANOCHAT)) == 2
    (sentence,) = constant_differences(spec, NANOCHAT, {"direction"})
    assert "receives nesterov off, ns_steps 4" in sentence
    shared = shared_with_nanochat(spec, {"direction"})
    assert "Polar Express" not in shared and "Nesterov" not in shared and "no clipping" in shared


def test_a_rewritten_gate_is_explained_by_its_course_alone(tmp_path, gate):
    folder = write_campaign(tmp_path / "run", gate, spec=ANNEALING)
    gates = [0.1, 0.2, 0.4, 0.6, 0.8, 0.9]
    curve = {"validation_step": [0, 6], "validation_bpb": [3.0, 2.0]}
    save(folder, "p0000", make_columns(gates, loss=gates, grad_norm=gates, **curve))
    history = read_history(folder)
    text = " ".join(explain(history, history.record("p0000")))
    assert text.startswith("Its gate function is rewritten")
    assert "rises from" in text and "moved by" not in text and "a schedule could" not in text
    history = history._replace(records=history.records[:2])
    section = report_sections(history)["drivers"]
    assert "rewritten" in section.sentences[0] and not section.groups


def test_functions_that_are_not_called_are_not_explained(tmp_path, gate):
    history = read_history(write_campaign(tmp_path / "run", gate))
    record = history.record("p0000")
    assert rewritten_code.called_slots(record) == frozenset()
    (function,) = rewritten_code.rewritten_functions(history.records, record)
    assert "not called" in rewritten_code.author_sentence(function)
    assert not any("rewritten" in sentence for sentence in explain(history, record))


def test_policies_with_code_are_equal_only_if_every_field_is(blend, gate):
    def arm(spec=NANOCHAT, *functions):
        return Arm("a", spec, {}, code=code_of(*functions) if functions else None)

    unread = NANOCHAT._replace(clip_threshold=3.0)  # built-in functions do not read it
    assert same_policy(arm(), arm(unread))
    assert not same_policy(arm(), arm(NANOCHAT, blend))
    assert same_policy(arm(NANOCHAT, blend), arm(NANOCHAT, blend))
    assert not same_policy(arm(NANOCHAT, blend), arm(unread, blend))
    assert same_policy(arm(), arm(NANOCHAT, gate))  # the gate is off
    (field,) = difference(arm(NANOCHAT, blend), arm(unread, blend))["fields"]
    assert field["read"]
    assert all(field["read"] for field in spec_fields(NANOCHAT, has_code=True))


# The report --------------------------------------------------------------------------------


def test_the_report_shows_providers_rejections_diffs_and_costs(folder):
    history = read_history(folder)
    section = report_sections(history)["code"]
    providers, rejected = section.tables
    assert [row[:6] for row in providers.rows] == [
        ["other", "1", "0", "1", "0", "0"],
        ["scripted", "1", "1", "0", "0", "0"],
    ]
    assert rejected.rows[0][:5] == ["1", "direction", "nanochat", "other", "import"]
    assert "p0000, +0.0100 bpb" in section.sentences[-1]
    (diff,) = section.diffs
    assert ("removed", REMOVED) in diff.lines
    (trace,) = section.groups[0].charts[0].data
    assert (trace.x, trace.y, trace.text) == ((0.25,), (0.01,), ("p0000",))
    free = [entry._replace(dollars=0.0) for entry in history.proposals]
    (chart,) = report_sections(history._replace(proposals=free))["code"].groups[0].charts
    assert chart.data[0].x == (1234.0,) and "tokens" in chart.caption


def test_outside_text_is_only_text_in_the_report(folder):
    path = folder / proposals.FILE
    last = proposals.read(path)[1]._replace(number=2, provider=EVIL)
    proposals.append(path, last)
    text = page.render(read_history(folder))
    assert "alert(1)" in text and "<script>alert" not in text
    assert f'<span class="added">{ADDED}' in text
    (section,) = re.findall(r'<section id="code".*?</section>', text, re.S)
    assert "<script" not in section and "<b>" not in section
    assert html.escape("<script>alert(1)</script>") in section


# Card, comparison, replay ------------------------------------------------------------------


def test_the_fence_of_a_source_on_a_card_cannot_be_closed_by_it():
    source = "def gate(x):\n    return '```'"
    lines = card_page._sources({"gate": f"{source}\n"})
    assert lines[2:] == ["````python", source, "````", ""]
    assert card_page._sources({}) == []


def test_code_for_other_matrices_is_refused_before_data_is_read(folder):
    with pytest.raises(
        CertificateError, match=r"must have a program for \d+x\d+, got programs for 8x8"
    ) as error:
        distinct_arms(screen.get_config(), ["nanochat", f"{folder}:p0000"])
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def compared(tmp_path_factory, walls):
    """Returns (campaign's run folder, config, result of a comparison with its code, function)."""
    place = tmp_path_factory.mktemp("compared")
    write_corpus(place / "corpus")
    places = {"data.corpus": f"parquet:{place / 'corpus'}", "data.cache_dir": str(place / "cache")}
    config = make_config(SETTINGS | places, place / "work", compare__seeds=2)
    function = certify(BLEND, "direction", matrices_of(config))
    folder = write_campaign(place / "run", function)
    with pytest.MonkeyPatch.context() as patch:
        # JAX is already initialised in this process.
        patch.setattr(site, "use_devices", lambda config: config.devices)
        compare.compare(config, ["nanochat", f"{folder}:p0000", f"{folder}:p0000m1"])
    result = read_sealed(place / "work" / "compare" / "comparison.json", compare.KIND)
    return folder, config, result, function


@pytest.mark.slow
def test_a_comparison_trains_with_the_code(compared):
    folder, config, result, function = compared
    assert [spec["id"] for spec in result["specs"]] == ["nanochat", f"{folder}:p0000"]
    assert result["same"] == [{"id": f"{folder}:p0000m1", "same_as": f"{folder}:p0000"}]
    assert all(a != b for a, b in zip(*result["bpb"], strict=True))
    runs = read_runs(Path(config.workdir) / "compare")
    codes = [run.job["candidate"].get("code") for run in runs]
    assert sorted(codes, key=bool) == [None] * 2 + [{"direction": function.id}] * 2


@pytest.mark.slow
def test_a_card_with_code_is_replayed_from_its_run_folder(compared, repository, tmp_path):
    """The runs of the comparison replace those of a confirmation."""
    folder, config, result, function = compared
    runs = {
        bool(r.job["candidate"].get("code")): r for r in read_runs(Path(config.workdir) / "compare")
    }
    baseline, winner = runs[False], runs[True]
    values = config.to_dict() | {"calibration": "none"}
    values["confirm"] |= {"steps": config.train.steps}
    committed = repository / "results" / "classics_cpu" / "evidence" / "g002c05.json"
    card = read_sealed(committed, KIND)
    card |= {name: result[name] for name in ("versions", "device", "fingerprints")}
    bpb = {"baseline_bpb": [baseline.val_bpb], "winner_bpb": [winner.val_bpb]}
    card |= {
        "confirmation": card["confirmation"] | {"pairs": 1} | bpb,
        "seeds": [winner.job["seed"]],
        "fold": winner.job["fold"],
        "arms": {"baseline": baseline.job["candidate"], "winner": winner.job["candidate"]},
        "config": values,
        "attribution": None,
        "transfer": None,
        "id": "p0000",
    }
    path = folder / "evidence" / "p0000.json"
    path.parent.mkdir()
    write_sealed(path, KIND, card)
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, "use_devices", lambda config: config.devices)
        settings = replay_config.get_config()
        settings.devices, settings.data.cache_dir = config.devices, config.data.cache_dir
        assert replay.replay(settings, path, 1, Console(file=output)), output.getvalue()
        assert "agrees exactly" in output.getvalue()
        shutil.move(path, tmp_path / "p0000.json")  # the code stays behind
        with pytest.raises(CertificateError, match=function.id):
            replay.replay(settings, tmp_path / "p0000.json", 1, Console(file=output))
