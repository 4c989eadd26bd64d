"""The report: its content, the escaping of outside text, and its reproducibility."""

import base64
import html
import json
import os
import re

import numpy as np
import pytest
from confirmed import SEEDS, WINNER, bpb_of, write
from conftest import REPOSITORY
from histories import make_columns, make_history, write_folder
from hypothesis import given
from hypothesis import strategies as st
from records import make_dead, make_record
from scipy import stats

from nanoevolve_jax.evidence.confirmation import ConfirmationRules, power
from nanoevolve_jax.evolution import archive
from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.execution.job import job_from_json
from nanoevolve_jax.policy.spec import ANNEALING
from nanoevolve_jax.reporting import candidates, measurements, page
from nanoevolve_jax.reporting.elements import COLORS
from nanoevolve_jax.reporting.history import read_history
from nanoevolve_jax.reporting.page import report_sections
from nanoevolve_jax.reporting.summary import verdict

SECTIONS = {
    *("curves", "policy", "drivers", "front", "operators"),
    *("noise", "placebos", "compute", "origin"),
}
STEPS = 8


@pytest.fixture(scope="module")
def confirmed(tmp_path_factory):
    """Returns the run folder of a search with a promotion and a confirmed winner."""
    return write(tmp_path_factory.mktemp("confirmed") / "run", REPOSITORY)


@pytest.fixture
def history(confirmed):
    return read_history(confirmed)


@pytest.fixture(scope="module")
def rendered(confirmed):
    return page.render(read_history(confirmed))


def family():
    """Returns the baseline, a better policy and a failed candidate."""
    return [
        make_record(status="baseline"),
        make_record("annealing", spec=ANNEALING, operator="preset", score=0.1, bpb=1.9),
        make_dead("g001c00", generation=1, parent_id="annealing", status="dead"),
    ]


def columns():
    more = {"loss": np.linspace(6, 4, STEPS), "grad_norm": np.ones(STEPS)}
    curve = {"validation_step": [0, 4, STEPS], "validation_bpb": [3.0, 2.5, 2.0]}
    return make_columns(np.linspace(0.1, 0.9, STEPS), **more) | curve


@pytest.fixture
def folder(tmp_path):
    """Returns a run folder without a calibration."""
    telemetry = {name: columns() for name in ("nanochat", "annealing")}
    return write_folder(tmp_path / "run", family(), telemetry)


def data_of(text):
    """Returns the data that the page passes to its script."""
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(data)


def sentences_of(section):
    return " ".join(section.sentences)


# The page ----------------------------------------------------------------------------------


def test_the_verdict_precedes_all_sections(history, rendered):
    (heading,) = re.findall(r"<h1[^>]*>(.*?)</h1>", rendered, re.S)
    assert html.unescape(heading) == verdict(history)
    assert rendered.index("<h1") < rendered.index("<section")
    for name in SECTIONS | {"tree"}:
        assert rendered.count(f'<section id="{name}"') == 1 and f'href="#{name}"' in rendered
    assert set(report_sections(history)) == SECTIONS


def test_every_figure_has_data_a_caption_and_an_element(history, rendered):
    data = data_of(rendered)
    charts = [c for s in report_sections(history).values() for g in s.groups for c in g.charts]
    assert len(charts) == len(data["charts"]) == 22
    for chart in charts:
        assert f'data-chart="{chart.name}"' in rendered
        assert chart.caption and chart.caption in html.unescape(rendered)
        assert any(x is not None for trace in chart.data for x in trace.x), chart.name
        assert data["charts"][chart.name]["layout"]["xaxis"]["title"]["text"]


def test_every_colour_of_the_figures_is_a_variable_of_the_style_sheet(rendered):
    light = rendered.split("prefers-color-scheme")[0]
    for color, name in data_of(rendered)["colors"].items():
        assert f"{name}: {color};" in light
    assert set(data_of(rendered)["colors"]) == set(COLORS.values())


def test_the_same_folder_gives_the_same_bytes_without_paths(folder, tmp_path):
    first, second = (
        page.write_report(folder, tmp_path / name).read_bytes() for name in ("a.html", "b.html")
    )
    assert first == second and str(tmp_path).encode() not in first


def test_the_page_loads_nothing(rendered):
    outside = re.sub(r"<script>.*?</script>", "", rendered, flags=re.S)
    assert not re.findall(r'(?:src|href)="(?!#|data:)', outside)
    assert "default-src 'none'" in outside


EVIL = "</script><script>alert(1)</script><b>&\"'\u2028\u202e\x1b[2J"
ESCAPED = "</script><script>alert(1)</script><b>&\"'\\u2028\\u202e\\x1b[2J"


def test_strings_of_an_archive_are_only_text(folder):
    records = archive.read(folder / "archive.jsonl")
    failure = {"reason": EVIL, "step": 1}
    records[2] = records[2]._replace(operator=EVIL, change=EVIL, failure=failure)
    archive.rewrite(folder / "archive.jsonl", records)
    text = page.render(read_history(folder))
    assert "alert(1)</script>" not in text
    assert data_of(text)["candidates"]["all"][2]["operator"] == ESCAPED
    assert html.escape(ESCAPED, quote=False) in text.replace("&#34;", '"').replace("&#39;", "'")


def test_tags_are_escaped_in_figures(history):
    (chart,) = report_sections(history)["operators"].groups[0].charts
    assert "toggle_&lt;b>bold&lt;/b>" in [row for trace in chart.data for row in trace.y]


# Missing data ------------------------------------------------------------------------------


def test_without_a_calibration_the_sections_say_so(folder):
    sections = report_sections(read_history(folder))
    assert "no calibration" in sentences_of(sections["noise"]) and not sections["noise"].groups
    assert "No candidate" in sentences_of(sections["placebos"])
    assert "no promotion" in sentences_of(sections["operators"])
    assert "has not ended" in sentences_of(sections["compute"])
    assert "no band" in sections["curves"].groups[0].charts[0].caption


def test_without_telemetry_there_are_no_figures_of_a_policy(tmp_path):
    sections = report_sections(read_history(write_folder(tmp_path / "run", family())))
    for name in ("curves", "policy", "drivers"):
        assert "no telemetry" in sentences_of(sections[name]) and not sections[name].groups


def test_a_policy_without_a_gate_has_no_drivers(tmp_path):
    records = [make_record(status="baseline"), make_record("g001c00", bpb=1.9, score=0.1)]
    folder = write_folder(tmp_path / "run", records, {"g001c00": columns()})
    sections = report_sections(read_history(folder))
    assert sentences_of(sections["drivers"]) == "g001c00 has no gate."
    assert "not in use" in sections["policy"].groups[0].charts[0].caption


def test_a_search_in_which_every_child_failed_has_a_report(tmp_path):
    records = [make_record(status="baseline"), make_dead("g001c00", status="dead")]
    folder = write_folder(tmp_path / "run", records, {"nanochat": columns()})
    text = page.render(read_history(folder))
    assert "only the baseline is shown" in text and "all failed" in text


def test_a_missing_calibration_is_mentioned(tmp_path):
    absent = {"calibration": None, "summary": None}
    history = make_history(tmp_path, family(), calibrated=True, **absent)
    assert "is missing" in sentences_of(report_sections(history)["noise"])


# Measurements ------------------------------------------------------------------------------


def test_bands_are_intervals_of_the_mean_over_confirmation_seeds(history):
    values = history.cards[WINNER]["confirmation"]["winner_bpb"]
    curves = measurements.curves(history, history.record(WINNER))
    assert curves.stage == "confirmation" and curves.arms[WINNER].shape == (len(values), 2)
    np.testing.assert_array_equal(curves.arms[WINNER][:, -1], values)
    mean, low, high = measurements.band(curves.arms[WINNER])
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (low[-1], high[-1]) == pytest.approx(expected)
    assert mean[-1] == pytest.approx(np.mean(values))


def test_without_a_card_the_curves_are_those_of_promotion(history):
    curves = measurements.curves(history._replace(cards={}), history.record(WINNER))
    assert curves.stage == "promotion" and curves.arms["nanochat"].shape == (SEEDS, 2)
    np.testing.assert_array_equal(curves.arms[WINNER][:, -1], history.record(WINNER).val_bpb[1:])


def test_gains_of_all_stages_are_shown_beside_the_noise(history):
    winner, baseline = history.record(WINNER), history.baseline
    screen, promotion, confirmation = measurements.stage_gains(history, winner)
    assert screen.gain.mean == pytest.approx(0.04) and screen.seeds == 1
    fresh = np.subtract(baseline.val_bpb[1:], winner.val_bpb[1:])
    assert promotion.gain.mean == pytest.approx(fresh.mean())
    test = history.cards[WINNER]["confirmation"]["test"]
    assert confirmation.gain == (test["mean"], test["low"], test["high"])
    assert screen.sigma == history.calibration["noise"]["screen"]["sigma"]


def test_a_detectable_gain_is_detected_four_times_in_five(history):
    limit = measurements.detectable_gain(history)
    noise = history.calibration["noise"]["full"]
    sigma, paired = noise["sigma"], noise["paired_sigma"] / noise["sigma"]
    assert 0 < limit.paired < limit.independent
    assert power(limit.paired / sigma, paired, ConfirmationRules()) >= 0.8
    assert power(limit.paired / sigma / 2, paired, ConfirmationRules()) < 0.8


def test_placebos_are_compared_with_the_baseline(history):
    attribution = history.cards[WINNER]["attribution"]
    bpb = attribution["bpb"]
    gains = measurements.placebo_gains(attribution)
    assert len(gains) == 3 + len(bpb["constants"])
    own = np.subtract(bpb["baseline"], bpb["winner"])
    np.testing.assert_array_equal(gains["the policy itself"], own)
    section = report_sections(history)["placebos"]
    assert [chart.name for chart in section.groups[0].charts] == ["placebos", "perturbations"]
    assert {row[0] for row in section.tables[0].rows} == set(attribution["contrasts"])
    bpb["yoked"][3] = None
    failed = "Failed runs: 1 of 'another seed's trajectory'"
    assert failed in sentences_of(report_sections(history)["placebos"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"retuned_baseline": True, "confirmation": None}, "only retunes the baseline"),
        ({"confirmation": {"outcome": "null"}}, "'null'"),
        ({}, "configured to end"),
    ],
)
def test_the_reason_for_missing_placebos_is_given(history, changes, reason):
    card = history.cards[WINNER]
    confirmation = changes.get("confirmation", {})
    if confirmation is not None:
        changes = changes | {"confirmation": card["confirmation"] | confirmation}
    card = card | {"arms": None, "attribution": None} | changes
    sections = report_sections(history._replace(cards={WINNER: card}))
    assert reason in sentences_of(sections["placebos"])
    assert "promotion" in sections["curves"].groups[0].charts[0].caption


def test_compute_is_the_sum_over_all_stages(history):
    rows = {row[0]: row[1:] for row in report_sections(history)["compute"].tables[0].rows}
    total, *runs = (int(row[0].replace(",", "")) for row in [rows.pop("all"), *rows.values()])
    calibration = sum(stage["runs"] for stage in history.calibration["spent"].values())
    assert total == sum(runs) == calibration + len(history.records) + len(history.runs)
    assert rows["promote"][0] == str(2 * SEEDS)


def test_the_runs_of_the_fixture_are_reproducible(history):
    run = history.runs[0]
    assert bpb_of(job_from_json(run.job)) == run.val_bpb


# Candidates --------------------------------------------------------------------------------


def test_operators_agree_with_a_count_by_hand():
    gains = [0.01, 0.03, -0.02]
    records = [make_record(status="baseline", bpb=2.0)]
    records.append(make_record("p", bpb=1.9, operator="preset", status="survivor"))
    for i, gain in enumerate(gains):
        status = "survivor" if i == 1 else "rejected"
        child = {"parent_id": "p", "operator": "a", "status": status}
        records.append(make_record(f"a{i}", bpb=1.9 - gain, **child))
    records.append(make_dead("a9", parent_id="p", operator="a", status="dead"))
    records.append(make_record("b0", parent_id="a1", bpb=1.8, operator="b", status="promoted"))
    records.append(make_dead("c0", parent_id="p", operator="c", status="dead"))
    rows = candidates.operators(records, ["a1", "b0"])
    assert rows[0].name == "a"  # the most frequent operator
    by_name = {row.name: row for row in rows}
    assert by_name["a"][1:6] == (4, 1, 1, 1, 3)
    low, high = stats.t.interval(0.95, 2, np.mean(gains), stats.sem(gains))
    assert by_name["a"].gain == pytest.approx((np.mean(gains), low, high))
    assert by_name["b"][1:5] == (1, 0, 1, 1) and not by_name["b"].interval
    assert by_name["b"].gain.mean == pytest.approx(1.87 - 1.8)
    assert by_name["c"].gain is None and by_name["c"].failed == 1
    assert by_name["preset"].gain.mean == pytest.approx(0.1)
    assert all(row.promoted is None for row in candidates.operators(records, None))


def unpack(packed):
    """Unpacks telemetry as `report.js` does, following the docstring of `pack`."""
    raw = base64.b64decode(packed["data"])
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
def test_packed_telemetry_is_accurate_to_one_level(steps, points, scale, seed):
    rng = np.random.default_rng(seed)
    table = {name: scale * rng.normal(size=steps) for name in candidates.COLUMNS}
    table["loss"][rng.integers(steps)] = rng.choice([np.nan, np.inf, 1e300])
    table["gate"][:] = 0.5
    packed = candidates.pack(table, points)
    kept = candidates.spaced(steps, points)
    assert packed["points"] == len(kept) and packed["steps"] == steps
    for name, values in zip(candidates.COLUMNS, unpack(packed), strict=True):
        expected = table[name][kept]
        finite = np.abs(expected) < 3e38
        np.testing.assert_array_equal(np.isfinite(values), finite)
        spread = np.ptp(expected[finite]) if finite.any() else 0.0
        atol = spread / 1e5 + 3e-7 * np.abs(expected[finite]).max(initial=0.0)
        np.testing.assert_allclose(values[finite], expected[finite], rtol=0, atol=atol)


@given(st.integers(1, 500), st.integers(2, 500))
def test_spaced_steps_include_the_first_and_the_last(count, points):
    kept = candidates.spaced(count, points)
    assert len(kept) == len(set(kept)) == min(count, points)
    assert kept[0] == 0 and (len(kept) == 1 or kept[-1] == count - 1)


@pytest.mark.parametrize("count", [1, 27, 3000, 30_000])
def test_the_telemetry_of_all_candidates_is_bounded(count):
    points = candidates.points_per_column(count)
    packed = candidates.pack({n: np.zeros(1000) for n in candidates.COLUMNS}, points)
    assert 2 <= points <= candidates.MAX_POINTS
    assert count > 3000 or (points >= 40 and count * len(packed["data"]) < 8_000_000)


def test_a_candidate_is_stored_as_its_difference_from_the_baseline(history):
    compact = candidates.compact_candidates(history)
    by_id = {candidate["id"]: candidate for candidate in compact["all"]}

    def own(name):
        return {compact["paths"][i]: value for i, value in by_id[name]["own"]}

    assert own(WINNER) == {
        "control.enabled": "on",
        "control.coefficients.loss_improvement_ema": -0.4,
        "control.coefficients.grad_alignment_ema": 0.7,
    }
    assert own("g001c02") == {"recipe.momentum": 0.8} and own("nanochat") == {}
    assert by_id["g001c01"]["gain"] is None and by_id["g001c01"]["telemetry"] is None
    assert by_id["nanochat"]["gain"] == 0
    assert by_id[WINNER]["over_parent"] == pytest.approx(0.01)
    assert len(by_id[WINNER]["seeds"]) == 1 + SEEDS


# The command -------------------------------------------------------------------------------


def test_the_command_writes_to_the_given_path(shell, folder, tmp_path):
    out = tmp_path / "x.html"
    arguments = (f"--workdir={folder}", f"--out={out}")
    assert shell("report", *arguments, folder=tmp_path) == (0, f"{out}\n", "")
    assert "<h1" in out.read_text() and not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["--workdir"]),
        (["--workdir=/nowhere"], ["--workdir must be", "'/nowhere'"]),
        (["stray"], ["'stray'", "--workdir or --out"]),
        (["--wrkdir=x"], ["wrkdir", "workdir"]),
    ],
)
def test_an_error_is_one_line_with_exit_code_2(shell, tmp_path, arguments, parts):
    status, _, err = shell("report", *arguments, folder=tmp_path)
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert all(part in err for part in parts)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("a bug")])
def test_a_report_that_fails_at_the_end_of_a_search_is_one_line(folder, monkeypatch, error):
    def fail(*arguments):
        raise error

    lines = []
    monkeypatch.setattr(page, "write_whole", fail)
    assert page.write_at_end(folder, lines.append) is None
    assert len(lines) == 1 and "was not written" in lines[0] and "--workdir" in lines[0]


def test_a_report_that_cannot_be_written_leaves_the_old_one(folder, tmp_path, monkeypatch):
    (tmp_path / "taken").mkdir()
    with pytest.raises(ArchiveError, match=r"--out must be a file .*got .*taken"):
        page.write_report(folder, tmp_path / "taken")
    assert not list(tmp_path.glob(".taken*"))
    before = page.write_report(folder).read_bytes()

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ArchiveError):
        page.write_report(folder)
    assert (folder / "report.html").read_bytes() == before
    assert not list(folder.glob(".*"))
