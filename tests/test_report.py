"""What stands in a report: the truth about a folder, escaped, and the same every time."""

import html
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from confirmed import SEEDS, WINNER, bpb_of, write
from histories import make_columns, make_history, write_folder
from hypothesis import given
from hypothesis import strategies as st
from records import make_dead, make_record
from scipy import stats

from nanoevolve_jax.evidence.confirmation import ConfirmationRules, power
from nanoevolve_jax.evolution import archive
from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.policy.spec import ANNEALING
from nanoevolve_jax.reporting import candidates, page, training
from nanoevolve_jax.reporting.history import read_history
from nanoevolve_jax.reporting.operators import operators
from nanoevolve_jax.reporting.sections import sections
from nanoevolve_jax.reporting.words import verdict

SECTIONS = {
    *("curves", "policy", "drivers", "front", "operators"),
    *("noise", "placebos", "compute", "origin"),
}
STEPS = 8


@pytest.fixture(scope="module")
def confirmed(tmp_path_factory, repository_of_module):
    return write(tmp_path_factory.mktemp("confirmed") / "run", repository_of_module)


@pytest.fixture(scope="module")
def repository_of_module():
    from conftest import REPOSITORY

    return REPOSITORY


def family():
    """The baseline and one policy that is better, one that died."""
    return [
        make_record(status="baseline"),
        make_record("annealing", spec=ANNEALING, operator="preset", score=0.1, bpb=1.9),
        make_dead("g001c00", generation=1, parent_id="annealing", status="dead"),
    ]


def columns(gate=None):
    gate = np.linspace(0.1, 0.9, STEPS) if gate is None else gate
    more = {"loss": np.linspace(6, 4, STEPS), "grad_norm": np.ones(STEPS)}
    curve = {"validation_step": [0, 4, STEPS], "validation_bpb": [3.0, 2.5, 2.0]}
    return make_columns(gate, **more) | curve


@pytest.fixture
def folder(tmp_path):
    """A run folder without a calibration."""
    telemetry = {name: columns() for name in ("nanochat", "annealing")}
    return write_folder(tmp_path / "run", family(), telemetry)


def data_of(text):
    """What the page hands to its script."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(found)


def said(section):
    return " ".join(section.sentences)


# The whole page ----------------------------------------------------------------------------


def test_the_verdict_comes_first_and_every_section_follows(confirmed):
    history = read_history(confirmed)
    text = page.render(history)
    (first,) = re.findall(r"<h1[^>]*>(.*?)</h1>", text, re.S)
    assert html.unescape(first) == verdict(history)
    assert "(win level" in first and "the tuned baseline" in first
    assert text.index("<h1") < text.index("<section")
    for name in SECTIONS | {"tree"}:
        assert text.count(f'<section id="{name}"') == 1
        assert f'href="#{name}"' in text
    assert set(sections(history)) == SECTIONS


def test_every_figure_has_data_a_caption_and_a_place(confirmed):
    history = read_history(confirmed)
    text, data = page.render(history), data_of(page.render(history))
    shown = [c for s in sections(history).values() for g in s.groups for c in g.charts]
    assert len(shown) == len(data["charts"]) == 22
    for chart in shown:
        assert f'data-chart="{chart.name}"' in text
        assert chart.caption and chart.caption in html.unescape(text)
        assert any(x is not None for trace in chart.data for x in trace["x"]), chart.name
        assert chart.layout["xaxis"]["title"]["text"], chart.name


def test_the_same_folder_gives_the_same_bytes_and_nothing_of_the_machine(folder, tmp_path):
    first, second = (
        page.write_report(folder, tmp_path / name).read_bytes() for name in ("a.html", "b.html")
    )
    assert first == second
    assert str(tmp_path).encode() not in first


def test_nothing_in_it_names_a_thing_to_fetch(folder):
    text = page.render(read_history(folder))
    outside = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert not re.findall(r'(?:src|href)="(?!#|data:)', outside)
    assert "default-src 'none'" in outside


EVIL = "</script><script>alert(1)</script><b>&\"'\u2028\u202e\x1b[2J"
SEEN = "</script><script>alert(1)</script><b>&\"'\\u2028\\u202e\\x1b[2J"


def test_whatever_stands_in_an_archive_is_text(folder):
    records = archive.read(folder / "archive.jsonl")
    records[2] = records[2]._replace(
        operator=EVIL, change=EVIL, failure={"reason": EVIL, "step": 1}
    )
    archive.rewrite(folder / "archive.jsonl", records)
    text = page.render(read_history(folder))
    assert "alert(1)</script>" not in text
    assert data_of(text)["candidates"]["all"][2]["operator"] == SEEN
    assert html.escape(SEEN, quote=False) in text.replace("&#34;", '"').replace("&#39;", "'")


def test_a_tag_is_no_tag_in_a_figure(confirmed):
    (figure,) = (c for c in sections(read_history(confirmed))["operators"].groups[0].charts)
    rows = [row for trace in figure.data for row in trace["y"]]
    assert "toggle_&lt;b>bold&lt;/b>" in rows


# What is not there -------------------------------------------------------------------------


def test_without_a_calibration_its_sections_say_so(folder):
    found = sections(read_history(folder))
    assert "had no calibration" in said(found["noise"]) and not found["noise"].groups
    assert "No candidate of this search has been confirmed" in said(found["placebos"])
    assert "so it held no promotion" in said(found["operators"])
    assert "has not ended" in said(found["compute"])
    assert "One seed, so there is no band" in found["curves"].groups[0].charts[0].caption


def test_without_telemetry_the_figures_say_so(tmp_path):
    found = sections(read_history(write_folder(tmp_path / "run", family())))
    for name in ("curves", "policy", "drivers"):
        assert "No telemetry of it is in this folder" in said(found[name])
        assert not found[name].groups


def test_a_policy_without_a_gate_is_driven_by_nothing(tmp_path):
    records = [make_record(status="baseline"), make_record("g001c00", bpb=1.9, score=0.1)]
    folder = write_folder(tmp_path / "run", records, {"g001c00": columns()})
    found = sections(read_history(folder))
    assert said(found["drivers"]) == "g001c00 uses no gate, so nothing drives it."
    gate = found["policy"].groups[0].charts[0]
    assert "It is not in use: this is what it would have been." in gate.caption


def test_a_search_in_which_everything_else_died_still_has_a_report(tmp_path):
    records = [make_record(status="baseline"), make_dead("g001c00", status="dead")]
    folder = write_folder(tmp_path / "run", records, {"nanochat": columns()})
    text = page.render(read_history(folder))
    assert "No other candidate survived" in text
    assert "all failed" in text


def test_a_calibration_that_is_elsewhere_is_missed(tmp_path):
    absent = {"calibration": None, "summary": None}
    history = make_history(tmp_path, family(), calibrated=True, **absent)
    assert "is not where the search found it" in said(sections(history)["noise"])


# Curves, gains and noise -------------------------------------------------------------------


def test_bands_are_the_intervals_of_the_mean_over_the_seeds_of_the_confirmation(confirmed):
    history = read_history(confirmed)
    card = history.cards[WINNER]
    found = training.curves(history, history.record(WINNER))
    pairs = card["confirmation"]["pairs"]
    assert found.stage == "confirmation" and found.arms[WINNER].shape == (pairs, 2)
    np.testing.assert_array_equal(found.arms[WINNER][:, -1], card["confirmation"]["winner_bpb"])
    mean, low, high = training.band(found.arms[WINNER])
    values = card["confirmation"]["winner_bpb"]
    expected = stats.t.interval(0.95, pairs - 1, np.mean(values), stats.sem(values))
    assert (low[-1], high[-1]) == pytest.approx(expected)
    assert mean[-1] == pytest.approx(np.mean(values))
    caption = sections(history)["curves"].groups[0].charts[0].caption
    assert f"Means over {pairs} seeds; the bands are the 95 % interval" in caption


def test_without_a_card_the_curves_are_those_of_promotion(confirmed):
    history = read_history(confirmed)._replace(cards={})
    found = training.curves(history, history.record(WINNER))
    assert found.stage == "promotion"
    assert found.arms["nanochat"].shape == (SEEDS, 2)
    np.testing.assert_array_equal(found.arms[WINNER][:, -1], history.record(WINNER).val_bpb[1:])


def test_gains_of_every_stage_stand_beside_the_noise(confirmed):
    history = read_history(confirmed)
    winner, baseline = history.record(WINNER), history.baseline
    screen, promotion, confirmation = training.stage_gains(history, winner)
    assert screen.gain.mean == pytest.approx(0.04) and screen.seeds == 1
    fresh = np.subtract(baseline.val_bpb[1:], winner.val_bpb[1:])
    assert promotion.gain.mean == pytest.approx(fresh.mean())
    test = history.cards[WINNER]["confirmation"]["test"]
    assert confirmation.gain == (test["mean"], test["low"], test["high"])
    assert screen.sigma == history.calibration["noise"]["screen"]["sigma"]
    limit = training.detectable(history)
    noise = history.calibration["noise"]["full"]
    sigma, paired = noise["sigma"], noise["paired_sigma"] / noise["sigma"]
    assert 0 < limit.twins < limit.strangers
    assert power(limit.twins / sigma, paired, ConfirmationRules()) >= 0.8
    assert power(limit.twins / sigma / 2, paired, ConfirmationRules()) < 0.8


def test_placebos_stand_side_by_side_over_the_baseline(confirmed):
    history = read_history(confirmed)
    found = history.cards[WINNER]["attribution"]["bpb"]
    gains = training.placebo_gains(history.cards[WINNER]["attribution"])
    assert len(gains) == 3 + len(found["constants"])
    own = np.subtract(found["baseline"], found["winner"])
    np.testing.assert_array_equal(gains["the policy itself"], own)
    section = sections(history)["placebos"]
    figures = [chart.name for chart in section.groups[0].charts]
    assert figures == ["placebos", "perturbations"]
    rows = {row[0] for row in section.tables[0].rows}
    assert rows == set(history.cards[WINNER]["attribution"]["contrasts"])


def test_a_failed_placebo_is_counted_and_not_averaged(confirmed):
    history = read_history(confirmed)
    card = history.cards[WINNER]
    card["attribution"]["bpb"]["yoked"][3] = None
    section = sections(history)["placebos"]
    assert "Runs that failed: 1 of 'another seed's trajectory'." in said(section)


def test_a_retuned_baseline_and_a_null_have_no_placebos_and_say_why(confirmed):
    history = read_history(confirmed)
    card = history.cards[WINNER]
    kept = {name: card[name] for name in card if name not in ("arms", "attribution", "phases")}
    retuned = kept | {"retuned_baseline": True, "confirmation": None}
    found = sections(history._replace(cards={WINNER: retuned}))
    assert f"No placebo was run for {WINNER}: it only retunes" in said(found["placebos"])
    assert found["curves"].groups[0].charts[0].caption.count("runs of promotion")
    null = card | {"confirmation": card["confirmation"] | {"outcome": "null"}, "attribution": None}
    found = sections(history._replace(cards={WINNER: null}))
    assert "its confirmation ended as 'null'" in said(found["placebos"])


def test_compute_is_the_sum_of_everything_that_ran(confirmed):
    history = read_history(confirmed)
    rows = {row[0]: row[1:] for row in sections(history)["compute"].tables[0].rows}
    total = rows.pop("all")
    runs = [int(row[0].replace(",", "")) for row in rows.values()]
    spent = history.calibration["spent"]
    calibration = sum(stage["runs"] for stage in spent.values())
    assert int(total[0].replace(",", "")) == sum(runs)
    assert sum(runs) == calibration + len(history.records) + len(history.runs)
    assert rows["promote"][0] == str(2 * SEEDS)


def test_the_formula_of_the_made_up_runs_is_repeatable(confirmed):
    """Or the fixtures above would compare noise with noise."""
    from nanoevolve_jax.execution.job import job_from_json

    run = read_history(confirmed).runs[0]
    assert bpb_of(job_from_json(run.job)) == run.val_bpb


# Operators ---------------------------------------------------------------------------------


def test_operators_agree_with_a_count_by_hand():
    gains = [0.01, 0.03, -0.02]
    records = [make_record(status="baseline", bpb=2.0)]
    parent = make_record("p", bpb=1.9, operator="preset", status="survivor")
    records.append(parent)
    for i, gain in enumerate(gains):
        status = "survivor" if i == 1 else "rejected"
        records.append(
            make_record(f"a{i}", parent_id="p", bpb=1.9 - gain, operator="a", status=status)
        )
    records.append(make_dead("a9", parent_id="p", operator="a", status="dead"))
    records.append(make_record("b0", parent_id="a1", bpb=1.8, operator="b", status="promoted"))
    records.append(make_dead("c0", parent_id="p", operator="c", status="dead"))
    found = {row.name: row for row in operators(records, ["a1", "b0"])}
    a = found["a"]
    assert (a.tried, a.failed, a.survived, a.promoted, a.trained) == (4, 1, 1, 1, 3)
    low, high = stats.t.interval(0.95, 2, np.mean(gains), stats.sem(gains))
    assert a.gain == pytest.approx((np.mean(gains), low, high))
    b = found["b"]
    assert (b.tried, b.survived, b.promoted, b.interval) == (1, 1, 1, False)
    assert b.gain.mean == pytest.approx(1.87 - 1.8)
    assert found["c"].gain is None and found["c"].failed == 1
    assert found["preset"].gain.mean == pytest.approx(0.1)
    assert all(row.promoted is None for row in operators(records, None))
    assert operators(records, None)[0].name == "a"  # the most tried


# Candidates --------------------------------------------------------------------------------


def unpack(packed):
    """Telemetry as `report.js` reads it, written again from the description of `pack`."""
    raw = candidates.base64.b64decode(packed["data"])
    count, points = len(candidates.COLUMNS), packed["points"]
    low, span = np.frombuffer(raw, "<f4", 2 * count).astype(float).reshape(2, count, 1)
    levels = np.frombuffer(raw, "<u2", offset=8 * count).reshape(count, points)
    return np.where(levels == 65535, np.nan, low + span * levels / 65534)


@given(
    st.integers(1, 40),
    st.integers(2, 60),
    st.sampled_from([1.0, 1e-6, 1e6]),
    st.integers(0, 2**32 - 1),
)
def test_packed_telemetry_is_right_to_a_level(steps, points, scale, seed):
    rng = np.random.default_rng(seed)
    table = {name: scale * rng.normal(size=steps) for name in candidates.COLUMNS}
    table["loss"][rng.integers(steps)] = rng.choice([np.nan, np.inf, 1e300])
    table["gate"][:] = 0.5
    packed = candidates.pack(table, points)
    kept = candidates.spaced(steps, points)
    assert packed["points"] == len(kept) and packed["steps"] == steps
    for name, found in zip(candidates.COLUMNS, unpack(packed), strict=True):
        expected = table[name][kept]
        finite = np.abs(expected) < 3e38
        np.testing.assert_array_equal(np.isfinite(found), finite)
        spread = np.ptp(expected[finite]) if finite.any() else 0.0
        size = np.abs(expected[finite]).max(initial=0.0)
        np.testing.assert_allclose(
            found[finite], expected[finite], rtol=0, atol=spread / 1e5 + 3e-7 * size
        )


@given(st.integers(1, 500), st.integers(2, 500))
def test_spaced_steps_begin_at_the_first_and_end_at_the_last(count, points):
    kept = candidates.spaced(count, points)
    assert len(kept) == min(count, points)
    assert kept[0] == 0 and (len(kept) == 1 or kept[-1] == count - 1)
    assert len(set(kept)) == len(kept)


@pytest.mark.parametrize("count", [1, 27, 3000, 30_000])
def test_the_telemetry_of_all_candidates_is_bounded(count):
    points = candidates.points_each(count)
    packed = candidates.pack({n: np.zeros(1000) for n in candidates.COLUMNS}, points)
    if count <= 3000:
        assert points >= 40 and count * len(packed["data"]) < 8_000_000
    assert 2 <= points <= candidates.MOST_POINTS


def test_a_candidate_is_its_difference_from_the_baseline(confirmed):
    history = read_history(confirmed)
    found = candidates.candidates(history)
    by_id = {one["id"]: one for one in found["all"]}
    own = {found["paths"][i]: x for i, x in by_id[WINNER]["own"]}
    assert own == {
        "control.enabled": "on",
        "control.coefficients.loss_improvement_ema": -0.4,
        "control.coefficients.grad_alignment_ema": 0.7,
    }
    control = {found["paths"][i]: x for i, x in by_id["g001c02"]["own"]}
    assert control == {"recipe.momentum": 0.8}
    assert by_id["nanochat"]["own"] == [] and by_id["nanochat"]["gain"] == 0
    assert by_id["g001c01"]["gain"] is None and by_id["g001c01"]["telemetry"] is None
    assert by_id[WINNER]["over_parent"] == pytest.approx(0.01)
    assert len(by_id[WINNER]["seeds"]) == 1 + SEEDS


# The command -------------------------------------------------------------------------------


def run(repository, *arguments):
    process = subprocess.run(
        [sys.executable, "-m", "nanoevolve_jax.report", *arguments],
        cwd=repository, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return process.returncode, process.stdout, process.stderr


def test_the_command_writes_where_it_is_told(repository, folder, tmp_path):
    status, out, err = run(repository, f"--workdir={folder}", f"--out={tmp_path / 'x.html'}")
    assert (status, err) == (0, "") and out.strip() == str(tmp_path / "x.html")
    assert "<h1" in (tmp_path / "x.html").read_text()
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["--workdir is missing"]),
        (["--workdir=/nowhere"], ["--workdir is '/nowhere'", "allowed: the folder of a search"]),
        (["stray"], ["'stray'", "allowed: --workdir and --out"]),
        (["--wrkdir=x"], ["--wrkdir=x", "--workdir"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(repository, arguments, parts):
    status, _, err = run(repository, *arguments)
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1
    for part in parts:
        assert part in err


def test_a_place_that_cannot_be_written_is_named_and_nothing_is_left(folder, tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(ArchiveError, match=r"--out is .*taken.*; allowed: a file that can be writ"):
        page.write_report(folder, tmp_path / "taken")
    assert not list(tmp_path.glob(".taken*"))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("a mistake")])
def test_a_report_that_fails_at_the_end_of_a_search_is_one_line(folder, monkeypatch, error):
    def fail(*arguments):
        raise error

    lines = []
    monkeypatch.setattr(page, "write_whole", fail)
    assert page.write_at_end(folder, lines.append) is None
    assert len(lines) == 1 and "was not written" in lines[0] and "--workdir" in lines[0]
    assert not (folder / "report.html").exists()


def test_an_old_report_stays_when_a_new_one_cannot_be_written(folder, monkeypatch):
    before = page.write_report(folder).read_bytes()

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ArchiveError):
        page.write_report(folder)
    assert (folder / "report.html").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []
