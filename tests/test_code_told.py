"""What show, report, comparison, card and replay say of rewritten functions."""

import html
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from certified_code import BLEND, SOURCES, certify, code_of, write_campaign
from histories import family, make_columns, save, write_folder
from nanoevolve_jax.configs import replay as replay_config
from nanoevolve_jax.configs import screen
from test_search import SETTINGS, make_config, write_corpus

from nanoevolve_jax import compare, replay, site
from nanoevolve_jax.codegen.sandbox.matrices import matrices
from nanoevolve_jax.evidence import page as card_page
from nanoevolve_jax.evidence.card import KIND
from nanoevolve_jax.evidence.comparison import Arm
from nanoevolve_jax.evidence.runs import read_runs
from nanoevolve_jax.evidence.sealed import read_sealed, write_sealed
from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.evolution.proposals import FILE, Entry, append, read
from nanoevolve_jax.execution.json_files import finite_or_null, to_text
from nanoevolve_jax.policy.certified import CertificateError
from nanoevolve_jax.policy.spec import ANNEALING, NANOCHAT
from nanoevolve_jax.reporting import page, proposals, rewritten
from nanoevolve_jax.reporting.candidate import difference, fields, same_policy
from nanoevolve_jax.reporting.differences import as_in_nanochat, fixed_differences
from nanoevolve_jax.reporting.explain import explain
from nanoevolve_jax.reporting.history import read_history
from nanoevolve_jax.reporting.sections import sections
from nanoevolve_jax.show import shown
from nanoevolve_jax.terminal.console import Console
from nanoevolve_jax.terminal.pages import WIDTH, render

EVIL = "<script>alert(1)</script> \x1b[31m & \"'"


@pytest.fixture(scope="module")
def blend():
    return certify(BLEND, "direction", [(8, 8)])


@pytest.fixture(scope="module")
def gate():
    return certify(SOURCES["gate"], "gate")


@pytest.fixture
def folder(tmp_path, blend):
    return write_campaign(tmp_path / "run", blend, message=EVIL)


def text(arguments, what="", color=None):
    found, made = shown([str(a) for a in arguments], what)
    return found, render(made, Console(width=200, color_system=color, force_terminal=bool(color)))


def spoken(said):
    return " ".join(said.split())


# Show --------------------------------------------------------------------------------------


def test_a_candidate_shows_who_rewrote_what_and_at_what_cost(folder, blend):
    found, said = text([folder, "p0000"])
    (one,) = found["code"]
    assert (one["slot"], one["certificate"], one["called"]) == ("direction", blend.id, True)
    assert (one["written_in"], one["proposal"], one["provider"]) == ("p0000", 0, "scripted")
    assert one["cost_over_built_in"] == 2.0
    assert "by scripted in p0000 for 2 calls, 1,200 + 34 tokens, $0.2500." in spoken(said)
    assert f"Certificate {blend.id}, which passed language, trace, export." in spoken(said)
    assert (
        "-    ahead = x + knobs.momentum" in said
        and "+    ahead = x + 0.8" in said
        and "--- parent" not in said
    )
    assert "generation 1, code:direction: code of direction rewritten by scripted ($0.2500)" in (
        spoken(said)
    )
    assert max(map(len, said.splitlines())) <= WIDTH
    assert json.loads(to_text(finite_or_null(found))) == finite_or_null(found)


def test_a_mutant_shows_whose_code_it_has(folder):
    (one,) = text([folder, "p0000m1"])[0]["code"]
    assert one["written_in"] == "p0000" and one["diff"]
    assert text([folder, "nanochat"])[0]["code"] == []


def test_a_diff_is_coloured_where_there_are_colours(folder):
    assert "\x1b[32m+    ahead = x" in text([folder, "p0000"], color="standard")[1]
    assert "\x1b[31m-    ahead = x" in text([folder, "p0000"], color="standard")[1]
    assert "\x1b" not in text([folder, "p0000"])[1]


def test_an_overview_counts_the_proposals(folder):
    found, said = text([folder])
    assert found["code"]["proposals"] == 2 and found["code"]["reasons"] == {"import": 1}
    assert found["code"]["providers"]["other"]["dollars"] == 0.5
    assert (
        "2 proposals of code: 1 trained, 1 refused. Refused for import 1. They took 4 calls, "
        "2,400 + 68 tokens and $0.7500."
    ) in spoken(said)


def test_a_search_says_nothing_of_code(tmp_path):
    folder = write_folder(tmp_path / "run", family())
    found, said = text([folder])
    assert found["code"] is None and "proposal" not in said
    assert "rewritten" not in text([folder, "g001c00"])[1]
    assert "code" not in sections(read_history(folder))
    assert "Rewritten code" not in page.render(read_history(folder))


def test_a_campaign_without_a_settled_proposal_says_so(folder):
    history = read_history(folder)._replace(proposals=[])
    assert proposals.in_words(proposals.of(history)) == ["No proposal is settled yet."]
    section = sections(history)["code"]
    assert not section.groups and not section.tables and not section.diffs


def test_damaged_books_are_named(folder):
    (folder / FILE).write_text('{"number": 7}\n')
    with pytest.raises(ArchiveError, match=r"proposals.jsonl line 1 is damaged"):
        read_history(folder)


def test_two_candidates_are_compared_by_their_sources(folder):
    found, said = text([folder, "nanochat", "p0000"], "diff")
    (one,) = found["code"]
    assert (one["before"], one["same_computation"]) == (None, False)
    added, removed = (
        [line for kind, line in rewritten.diff_lines(one["diff"]) if kind == what]
        for what in ("added", "removed")
    )
    assert added == ["+    ahead = x + 0.8 * (buffer - x)"]
    assert removed == ["-    ahead = x + knobs.momentum * (buffer - x)"]
    assert not found["same_policy"] and "equal in every field" in said and added[0] in said
    assert text([folder, "p0000", "p0000m1"], "diff")[0]["code"] == []


def test_control_characters_do_not_reach_a_terminal():
    lines = list(rewritten.diff_lines("--- a\n+++ b\n+x\x1b[2J\r\u2028y"))
    assert lines == [("added", "+x?[2J??y")]


# What a policy does ------------------------------------------------------------------------


def test_nothing_is_claimed_of_what_a_source_decides():
    four = NANOCHAT._replace(ns_steps=4, nesterov=0)
    plain = " ".join(fixed_differences(four, NANOCHAT))
    assert "Polar Express iterations to 4" in plain and "takes the momentum as it is" in plain
    told = fixed_differences(four, NANOCHAT, {"direction"})
    assert told == ["Its direction is told nesterov off, ns_steps 4."]
    said = as_in_nanochat(four, {"direction"})
    assert "Polar Express" not in said and "Nesterov" not in said and "no clipping" in said


def test_a_rewritten_gate_is_told_from_its_course_alone(tmp_path, gate):
    folder = write_campaign(tmp_path / "run", gate, spec=ANNEALING)
    gates = [0.1, 0.2, 0.4, 0.6, 0.8, 0.9]
    curve = {"validation_step": [0, 6], "validation_bpb": [3.0, 2.0]}
    more = {"loss": gates, "grad_norm": gates}
    save(folder, "p0000", make_columns(gates, **more, **curve))
    history = read_history(folder)
    said = " ".join(explain(history, history.record("p0000")))
    assert said.startswith("Its gate is rewritten: see the source.")
    assert "rises from" in said and "What drives" not in said and "a schedule could" not in said
    history = history._replace(records=[history.records[0], history.records[1]])
    drivers = sections(history)["drivers"]
    assert "With its gate rewritten, no weights say what drives the gate of p0000." in (
        drivers.sentences
    )


def test_a_gate_that_is_off_makes_rewritten_gating_mute(tmp_path, gate):
    history = read_history(write_campaign(tmp_path / "run", gate))
    record = history.record("p0000")
    assert rewritten.called(record) == frozenset()
    (one,) = rewritten.rewritten(history.records, record)
    assert "which it does not call, for its gate is off" in rewritten.in_words(one)
    assert not any("rewritten" in said for said in explain(history, record))


def test_policies_with_code_are_the_same_only_if_nothing_at_all_differs(blend, gate):
    plain, code = Arm("a", NANOCHAT, {}), code_of(blend)
    unread = NANOCHAT._replace(clip_threshold=3.0)  # by built-in functions
    assert same_policy(plain, Arm("b", unread, {}))
    assert not same_policy(plain, Arm("b", NANOCHAT, {}, code=code))
    assert same_policy(Arm("a", NANOCHAT, {}, code=code), Arm("b", NANOCHAT, {}, code=code))
    assert not same_policy(Arm("a", NANOCHAT, {}, code=code), Arm("b", unread, {}, code=code))
    assert same_policy(plain, Arm("b", NANOCHAT, {}, code=code_of(gate)))  # nothing calls it
    (field,) = difference(Arm("a", NANOCHAT, {}, code=code), Arm("b", unread, {}, code=code))[
        "fields"
    ]
    assert field["read"]
    assert all(one["read"] for one in fields(NANOCHAT, told=True))


# The report --------------------------------------------------------------------------------


def test_the_report_has_books_best_diffs_and_gain_against_cost(folder):
    history = read_history(folder)
    section = sections(history)["code"]
    providers, refused = section.tables
    assert [row[:6] for row in providers.rows] == [
        ["other", "1", "0", "1", "0", "0"],
        ["scripted", "1", "1", "0", "0", "0"],
    ]
    assert refused.rows[0][:5] == ["1", "direction", "nanochat", "other", "import"]
    assert section.sentences[-1].startswith("The largest gain over a parent: p0000, +0.0100 bpb")
    (diff,) = section.diffs
    assert ("removed", "-    ahead = x + knobs.momentum * (buffer - x)") in diff.lines
    (chart,) = section.groups[0].charts
    (trace,) = chart.data
    assert (trace["x"], trace["y"], trace["text"]) == ([0.25], [0.01], ["p0000"])
    free = [e._replace(dollars=0.0) for e in history.proposals]
    (chart,) = sections(history._replace(proposals=free))["code"].groups[0].charts
    assert chart.data[0]["x"] == [1234.0] and "tokens" in chart.caption


def test_what_strangers_wrote_is_text_in_the_report(folder):
    append(
        folder / FILE,
        Entry(**read(folder / FILE)[1]._asdict() | {"number": 2, "provider": EVIL}),
    )
    rendered = page.render(read_history(folder))
    assert "alert(1)" in rendered and "<script>alert" not in rendered
    assert '<span class="added">+    ahead = x + 0.8 * (buffer - x)' in rendered
    (section,) = re.findall(r'<section id="code".*?</section>', rendered, re.S)
    assert "<script" not in section and "<b>" not in section
    assert html.escape("<script>alert(1)</script>") in section
    assert 'href="#code"' in rendered


# Card, comparison, replay ------------------------------------------------------------------


def test_a_card_shows_the_sources_in_fences_they_cannot_end():
    source = "def gate(x):\n    return '```'"
    lines = card_page._sources({"gate": f"{source}\n"})
    assert lines[0] == "Its function `gate`, rewritten:"
    assert lines[2:] == ["````python", source, "````", ""]
    assert card_page._sources({}) == []


@pytest.fixture(scope="module")
def compared(tmp_path_factory, walls):
    """A campaign's folder, its model's config, and a comparison that trained with its code."""
    place = tmp_path_factory.mktemp("compared")
    write_corpus(place / "corpus")
    places = {"data.corpus": f"parquet:{place / 'corpus'}", "data.cache_dir": str(place / "cache")}
    config = make_config(SETTINGS | places, place / "work", compare__seeds=2)
    function = certify(BLEND, "direction", matrices(config))
    folder = write_campaign(place / "run", function)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, "use_devices", lambda config: config.devices)  # JAX has begun long ago
        compare.compare(config, ["nanochat", f"{folder}:p0000", f"{folder}:p0000m1"])
    found = read_sealed(place / "work" / "compare" / "comparison.json", compare.KIND)
    return folder, config, found, function


def runs_of(config):
    return read_runs(Path(config.workdir) / "compare")


@pytest.mark.slow
def test_a_comparison_trains_with_the_code(compared):
    folder, config, found, function = compared
    assert [one["id"] for one in found["specs"]] == ["nanochat", f"{folder}:p0000"]
    assert found["same"] == [{"id": f"{folder}:p0000m1", "same_as": f"{folder}:p0000"}]
    assert all(a != b for a, b in zip(*found["bpb"], strict=True))
    codes = [run.job["candidate"].get("code") for run in runs_of(config)]
    assert sorted(codes, key=bool) == [None] * 2 + [{"direction": function.id}] * 2


def test_code_for_other_matrices_is_a_mistake_before_anything_is_read(folder, tmp_path):
    with pytest.raises(
        CertificateError, match=r"has programs for 8x8 and none for \d+x\d+"
    ) as error:
        compare.distinct(screen.get_config(), ["nanochat", f"{folder}:p0000"])
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_card_with_code_is_replayed_from_its_run_folder(compared, repository, tmp_path):
    """The runs of the comparison stand for those of a confirmation."""
    folder, config, found, function = compared
    runs = {
        bool(r.job["candidate"].get("code")): r for r in read_runs(Path(config.workdir) / "compare")
    }
    values = config.to_dict() | {"calibration": "none"}
    values["confirm"] |= {"steps": config.train.steps}
    committed = repository / "results" / "classics_cpu" / "evidence" / "g002c05.json"
    card = read_sealed(committed, KIND)
    card |= {name: found[name] for name in ("versions", "device", "fingerprints")}
    card |= {
        "confirmation": card["confirmation"]
        | {
            "pairs": 1,
            "baseline_bpb": [runs[False].val_bpb],
            "winner_bpb": [runs[True].val_bpb],
        },
        "seeds": [runs[True].job["seed"]],
        "fold": runs[True].job["fold"],
        "arms": {"baseline": runs[False].job["candidate"], "winner": runs[True].job["candidate"]},
        "config": values,
        "attribution": None,
        "transfer": None,
        "id": "p0000",
    }
    path = folder / "evidence" / "p0000.json"
    path.parent.mkdir()
    write_sealed(path, KIND, card)
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, "use_devices", lambda config: config.devices)
        settings = replay_config.get_config()
        settings.devices, settings.data.cache_dir = config.devices, config.data.cache_dir
        assert replay.replay(settings, path, 1, Console(file=said)), said.getvalue()
        assert "agrees exactly" in said.getvalue()
        shutil.move(path, tmp_path / "p0000.json")  # away from its code
        with pytest.raises(CertificateError, match=f"holds no certificate {function.id}"):
            replay.replay(settings, tmp_path / "p0000.json", 1, Console(file=said))
