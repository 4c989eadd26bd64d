"""A report of a real search, opened in headless Chromium from disk."""

import json
import shutil

import numpy as np
import pytest
from browser import chromium, needs_chromium, open_report
from confirmed import WINNER, write
from test_search import corpus, finished, settings  # noqa: F401  the fixtures of a tiny search

from nanoevolve_jax.evolution import archive
from nanoevolve_jax.policy.canonical import canonical
from nanoevolve_jax.policy.mutations import mutate
from nanoevolve_jax.reporting.page import write_report

pytestmark = needs_chromium
MANY = 3000
SECONDS = 3.0


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def report(finished):  # noqa: F811
    """The report that the search itself has written."""
    return finished[0] / "report.html"


@pytest.fixture(scope="module")
def records(finished):  # noqa: F811
    return archive.read(finished[0] / "archive.jsonl")


def draw_everything(page):
    page.evaluate("dispatchEvent(new Event('beforeprint'))")


def points_of(page):
    """How many points with numbers each figure shows, by its name."""
    return page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll(".chart")].map((place) => [
             place.dataset.chart ?? place.id,
             (place.data ?? []).map((trace) => trace.y.filter((y) => y !== null).length)
               .reduce((a, b) => a + b, 0)]))"""
    )


def shown_diff(page):
    """The difference from its parent that the page shows, [[path, before, after], ...]."""
    return page.evaluate(
        """() => [...document.querySelectorAll("#details-diff tbody tr")]
             .map((row) => [...row.children].map((cell) => cell.textContent))"""
    )


def told(change):
    """The same from the archive's words, numbers as JavaScript spells them."""
    parts = (part.split(" ") for part in change.split("; "))
    return [[path, spelt(before), spelt(after)] for path, before, _, after in parts]


def spelt(value):
    try:
        return f"{float(value):.10g}"
    except ValueError:
        return value


def in_numbers(diff):
    return [[path, spelt(before), spelt(after)] for path, before, after in diff]


def spot_of(page, name):
    """Where a candidate's node is, in pixels of the window."""
    page.evaluate("document.getElementById('tree').scrollIntoView({behavior: 'instant'})")
    page.wait_for_selector("#tree-chart[data-drawn]")
    return page.evaluate(
        """(name) => {
             const place = document.getElementById("tree-chart");
             const box = place.getBoundingClientRect();
             const trace = place.data.find((one) => one.customdata?.includes(name));
             const i = trace.customdata.indexOf(name), { xaxis, yaxis } = place._fullLayout;
             return [box.left + xaxis._offset + xaxis.l2p(trace.x[i]),
                     box.top + yaxis._offset + yaxis.l2p(trace.y[i])]; }""",
        name,
    )


# What a reader sees ------------------------------------------------------------------------


def test_it_opens_without_a_complaint_or_a_request_and_every_figure_has_data(browser, report):
    page, complaints, requests = open_report(browser, report)
    draw_everything(page)
    found = points_of(page)
    assert {"curves", "trajectory_gate", "front_cost", "operators", "tree-chart"} <= set(found)
    assert all(count > 0 for count in found.values()), found
    drawn = page.locator(".chart .main-svg .trace, .chart .main-svg .scatterlayer").count()
    assert drawn >= len(found)
    assert complaints == []
    assert requests == [report.as_uri()]
    page.close()


def test_so_does_one_with_promotion_confirmation_and_placebos(browser, repository, tmp_path):
    path = write_report(write(tmp_path / "run", repository))
    page, complaints, requests = open_report(browser, path)
    draw_everything(page)
    found = points_of(page)
    assert {"placebos", "perturbations", "gains", "curve_gains"} <= set(found)
    assert all(count > 0 for count in found.values()), found
    assert (complaints, requests) == ([], [path.as_uri()])
    assert page.locator("#details-title").text_content() == WINNER
    assert page.locator("#details-seeds tbody tr").count() == 10
    page.locator("#search").fill("dead")
    page.locator("#list button").first.click()
    assert page.locator("#details-failure").text_content() == "Failed at step 3: non-finite loss."
    page.close()


def test_clicking_a_node_shows_its_difference_from_its_parent(browser, report, records):
    page, complaints, _ = open_report(browser, report)
    children = [record for record in records if record.parent_id is not None]
    assert len(children) == 8
    draw_everything(page)
    for record in children:
        page.mouse.move(*spot_of(page, record.id))
        page.wait_for_selector(".hoverlayer .hovertext")  # Plotly has seen the mouse there
        page.wait_for_timeout(350)  # or two clicks would be a double one
        page.mouse.click(*spot_of(page, record.id))
        assert page.locator("#details-title").text_content() == record.id
        heading = page.locator("#details-diff-title").text_content()
        assert heading == f"Difference from its parent, {record.parent_id}"
        assert in_numbers(shown_diff(page)) == told(record.change), record.id
        seeds = page.locator("#details-seeds tbody tr").all_inner_texts()
        assert [row.split("\t")[2] for row in seeds] == [f"{x:.4f}" for x in record.val_bpb]
        steps = page.evaluate("document.getElementById('details-chart').data[1].x")
        assert steps == list(range(6))
    assert complaints == []
    page.close()


def test_telemetry_is_unpacked_as_it_was_recorded(browser, report, records, finished):  # noqa: F811
    page, _, _ = open_report(browser, report)
    draw_everything(page)
    name = page.locator("#details-title").text_content()
    with np.load(finished[0] / "telemetry" / f"{name}.npz") as data:
        recorded = dict(data)
    traces = page.evaluate(
        "document.getElementById('details-chart').data.map((t) => [t.name, t.y])"
    )
    assert len(traces) == 15
    for title, values in traces[1:]:
        expected = recorded[title.replace(" ", "_")]
        spread = np.ptp(expected) / 1e4 + 1e-6
        np.testing.assert_allclose(values, expected, atol=spread, rtol=0)
    page.close()


# By keyboard alone -------------------------------------------------------------------------


def tab_until(page, selector, most=60):
    """Presses Tab until the focus is on it; returns the places passed."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"{selector} cannot be reached by Tab")


def test_the_keyboard_alone_reaches_the_same(browser, report, records):
    page, _, _ = open_report(browser, report)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
    tab_until(page, "#list button")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert outline == "3px"
    reached = set()
    page.keyboard.press("Home")
    for _ in records:
        page.keyboard.press("Enter")
        name = page.locator("#details-title").text_content()
        assert page.evaluate("document.activeElement.dataset.id") == name
        record = next(record for record in records if record.id == name)
        diff = in_numbers(shown_diff(page))
        assert diff == (told(record.change) if record.parent_id else [])
        reached.add(name)
        page.keyboard.press("ArrowDown")
    assert reached == {record.id for record in records}
    page.close()


def test_arrows_walk_the_family_tree(browser, report, records):
    page, _, _ = open_report(browser, report)
    tab_until(page, "#tree-chart")
    by_id = {record.id: record for record in records}
    now = lambda: page.locator("#details-title").text_content()  # noqa: E731
    while (parent := by_id[now()].parent_id) is not None:
        page.keyboard.press("ArrowLeft")
        assert now() == parent
    page.keyboard.press("ArrowRight")
    assert by_id[now()].parent_id == "nanochat"
    before = now()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert by_id[now()].generation == by_id[before].generation
    page.close()


def test_what_can_be_chosen_and_ordered_can_be_reached_by_tab(browser, report):
    page, _, _ = open_report(browser, report)
    for selector in ("nav a", "#tree-chart", "#search", "#order", "#list button", "summary"):
        tab_until(page, selector)
    page.close()


# On any screen -----------------------------------------------------------------------------


@pytest.mark.parametrize("width", [320, 360, 768])
def test_nothing_overflows_a_narrow_screen(browser, report, width):
    page, _, _ = open_report(browser, report, width=width, height=740)
    draw_everything(page)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    widest = page.evaluate(
        "Math.max(...[...document.querySelectorAll('.chart')].map((c) => c.scrollWidth))"
    )
    assert 200 < widest <= width
    page.close()


def luminance(page, script):
    """Relative luminance of a CSS colour, rgb(...), that a script gives."""
    colour = page.evaluate(script)
    rgb = np.array([float(x) for x in colour[colour.index("(") + 1 : -1].split(",")][:3]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(page, text):
    """The WCAG contrast of a colour with the page."""
    paper = luminance(page, "getComputedStyle(document.body).backgroundColor")
    ink = luminance(page, text)
    return (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05)


TICKS = "getComputedStyle(document.querySelector('[data-chart=curves] .xtick text')).fill"
LINE = "getComputedStyle(document.querySelectorAll('[data-chart=curves] .js-line')[1]).stroke"


def test_dark_and_light_are_readable_and_change_while_it_is_open(browser, report):
    page, complaints, _ = open_report(browser, report, dark=True)
    colours = set()
    for dark in (True, False, True):
        page.emulate_media(color_scheme="dark" if dark else "light")
        page.wait_for_timeout(100)
        paper = luminance(page, "getComputedStyle(document.body).backgroundColor")
        assert (paper < 0.05) == dark
        assert contrast(page, "getComputedStyle(document.body).color") > 7
        assert contrast(page, TICKS) > 4.5
        assert contrast(page, LINE) > 3
        colours.add(page.evaluate(LINE))
    assert len(colours) == 2
    assert complaints == []
    page.close()


# Thousands of candidates -------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(finished, records, tmp_path_factory):  # noqa: F811
    """The report of the tiny search and of mutants of its policies, 3,000 in all."""
    folder = tmp_path_factory.mktemp("many") / "run"
    (folder / "telemetry").mkdir(parents=True)
    for name in ("config.json", "summary.json"):
        shutil.copy(finished[0] / name, folder)
    rng = np.random.default_rng(0)
    everyone = list(records)
    seen = {canonical(record.spec) for record in records}
    parents = [record for record in records if record.recipe is None]
    for record in records:
        shutil.copy(finished[0] / "telemetry" / f"{record.id}.npz", folder / "telemetry")
    while len(everyone) < MANY:
        number = len(everyone)
        parent = parents[-1 - min(rng.integers(0, len(parents), 2))]
        mutation = mutate(parent.spec, rng, seen)
        seen.add(canonical(mutation.spec))
        child = parent._replace(
            id=f"g{number // 16:03d}m{number:04d}", parent_id=parent.id,
            generation=parent.generation + 1, status="rejected", pareto=False,
            val_bpb=[parent.val_bpb[0] + float(rng.normal(0, 0.01))], **mutation._asdict(),
        )  # fmt: skip
        everyone.append(child)
        parents.append(child)
        source = finished[0] / "telemetry" / f"{records[number % len(records)].id}.npz"
        shutil.copy(source, folder / "telemetry" / f"{child.id}.npz")
    archive.append(folder / "archive.jsonl", everyone)
    return write_report(folder), everyone


def seconds_of(session):
    """What the page's main thread has computed so far: seconds, whatever else the machine does."""
    metrics = session.send("Performance.getMetrics")["metrics"]
    return next(metric["value"] for metric in metrics if metric["name"] == "ThreadTime")


def test_three_thousand_candidates_load_within_three_seconds(browser, many):
    """Until the page answers and its tree is drawn, on a machine that does nothing else."""
    path, _ = many
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]")
    answers = seconds_of(session)
    page.evaluate("document.getElementById('tree').scrollIntoView({behavior: 'instant'})")
    page.wait_for_selector("#tree-chart[data-drawn]")
    drawn = seconds_of(session)
    assert 0.05 < answers < drawn < SECONDS
    nodes = page.evaluate(
        """document.getElementById("tree-chart").data.filter((t) => t.customdata)
             .map((t) => t.x.length).reduce((a, b) => a + b)"""
    )
    assert nodes == MANY
    page.close()


def test_any_of_three_thousand_is_found_and_shown(browser, many):
    path, everyone = many
    page, _, _ = open_report(browser, path)
    record = everyone[1777]
    page.locator("#search").fill(record.id)
    assert page.locator("#page").text_content() == "1 found, page 1 of 1"
    page.locator("#list button").click()
    assert in_numbers(shown_diff(page)) == told(record.change)
    page.locator("#search").fill(record.operator)
    count = sum(other.operator == record.operator for other in everyone)
    assert page.locator("#page").text_content().startswith(f"{count} found")
    assert page.locator("#list tbody tr").count() <= 20
    assert path.stat().st_size < 20e6
    assert json.loads(page.locator("#data").text_content())["candidates"]["points"] >= 6
    page.close()
