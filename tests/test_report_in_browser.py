"""Reports opened from disk in headless Chromium."""

import contextlib
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
    """Returns the path of the report that the search wrote."""
    return finished[0] / "report.html"


@pytest.fixture(scope="module")
def records(finished):  # noqa: F811
    return {r.id: r for r in archive.read(finished[0] / "archive.jsonl")}


@pytest.fixture
def opened(browser):
    """Yields a function that opens reports, which must load and log nothing until the test ends."""
    with contextlib.ExitStack() as stack:

        def opened(path, **options):
            page, complaints, requests = open_report(browser, path, **options)

            def close():
                page.close()
                assert (complaints, requests) == ([], [path.as_uri()])

            stack.callback(close)
            return page

        yield opened


def draw_everything(page):
    page.evaluate("dispatchEvent(new Event('beforeprint'))")


def points_of(page):
    """Returns the number of finite points in each figure by its name."""
    return page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll(".chart")].map((plot) => [
             plot.dataset.chart ?? plot.id,
             (plot.data ?? []).map((trace) => trace.y.filter((y) => y !== null).length)
               .reduce((a, b) => a + b, 0)]))"""
    )


def selected(page):
    return page.locator("#details-title").text_content()


def shown_changes(page):
    """Returns the changes from the parent on the page as [[path, before, after], ...]."""
    rows = page.evaluate(
        """() => [...document.querySelectorAll("#details-diff tbody tr")]
             .map((row) => [...row.children].map((cell) => cell.textContent))"""
    )
    return [[path, spelled(before), spelled(after)] for path, before, after in rows]


def recorded_changes(record):
    """Returns the same changes from the archive."""
    if record.parent_id is None:
        return []
    parts = (part.split(" ") for part in record.change.split("; "))
    return [[path, spelled(before), spelled(after)] for path, before, _, after in parts]


def spelled(value):
    """Returns a value with its number, if it is one, in a normal form."""
    try:
        return f"{float(value):.10g}"
    except ValueError:
        return value


def position_of(page, name):
    """Returns the position of a candidate's node in pixels of the window."""
    page.evaluate("document.getElementById('tree').scrollIntoView({behavior: 'instant'})")
    page.wait_for_selector("#tree-chart[data-drawn]")
    return page.evaluate(
        """(name) => {
             const plot = document.getElementById("tree-chart");
             const box = plot.getBoundingClientRect();
             const trace = plot.data.find((trace) => trace.customdata?.includes(name));
             const i = trace.customdata.indexOf(name), { xaxis, yaxis } = plot._fullLayout;
             return [box.left + xaxis._offset + xaxis.l2p(trace.x[i]),
                     box.top + yaxis._offset + yaxis.l2p(trace.y[i])]; }""",
        name,
    )


def tab_until(page, selector, limit=60):
    """Presses Tab until the element has the focus."""
    for _ in range(limit):
        page.keyboard.press("Tab")
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"{selector} cannot be reached by Tab")


# Contents ----------------------------------------------------------------------------------


def test_every_figure_of_a_search_has_data(opened, report):
    page = opened(report)
    draw_everything(page)
    points = points_of(page)
    assert {"curves", "trajectory_gate", "front_cost", "operators", "tree-chart"} <= set(points)
    assert all(count > 0 for count in points.values()), points
    assert page.locator(".chart .main-svg .scatterlayer").count() >= len(points)


def test_every_figure_of_a_confirmed_search_has_data(opened, repository, tmp_path):
    page = opened(write_report(write(tmp_path / "run", repository)))
    draw_everything(page)
    points = points_of(page)
    assert {"placebos", "perturbations", "gains", "curve_gains"} <= set(points)
    assert all(count > 0 for count in points.values()), points
    assert selected(page) == WINNER
    assert page.locator("#details-seeds tbody tr").count() == 10
    page.locator("#search").fill("dead")
    page.locator("#list button").first.click()
    assert page.locator("#details-failure").text_content() == "Failed at step 3: non-finite loss."


def test_a_click_on_a_node_shows_its_candidate(opened, report, records):
    page = opened(report)
    draw_everything(page)
    for record in [r for r in records.values() if r.parent_id is not None][::3]:
        page.mouse.move(*position_of(page, record.id))
        page.wait_for_selector(".hoverlayer .hovertext")  # Plotly has registered the pointer
        page.wait_for_timeout(350)  # otherwise two clicks would be a double click
        page.mouse.click(*position_of(page, record.id))
        assert selected(page) == record.id
        assert record.parent_id in page.locator("#details-diff-title").text_content()
        seeds = page.locator("#details-seeds tbody tr").all_inner_texts()
        assert [row.split("\t")[2] for row in seeds] == [f"{x:.4f}" for x in record.val_bpb]
        steps = page.evaluate("document.getElementById('details-chart').data[1].x")
        assert steps == list(range(6))


def test_telemetry_is_unpacked_as_it_was_recorded(opened, report, finished):  # noqa: F811
    page = opened(report)
    draw_everything(page)
    with np.load(finished[0] / "telemetry" / f"{selected(page)}.npz") as data:
        recorded = dict(data)
    traces = page.evaluate(
        "document.getElementById('details-chart').data.map((t) => [t.name, t.y])"
    )
    assert len(traces) == 15
    for title, values in traces[1:]:
        expected = recorded[title.replace(" ", "_")]
        atol = np.ptp(expected) / 1e4 + 1e-6
        np.testing.assert_allclose(values, expected, atol=atol, rtol=0)


# Keyboard ----------------------------------------------------------------------------------


def test_the_keyboard_reaches_every_candidate_of_the_list(opened, report, records):
    page = opened(report)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
    tab_until(page, "#list button")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert outline == "3px"
    reached = set()
    page.keyboard.press("Home")
    for _ in records:
        page.keyboard.press("Enter")
        name = selected(page)
        assert page.evaluate("document.activeElement.dataset.id") == name
        assert shown_changes(page) == recorded_changes(records[name])
        reached.add(name)
        page.keyboard.press("ArrowDown")
    assert reached == set(records)


def test_arrow_keys_move_through_the_family_tree(opened, report, records):
    page = opened(report)
    for selector in ("nav a", "#tree-chart"):
        tab_until(page, selector)
    while (parent := records[selected(page)].parent_id) is not None:
        page.keyboard.press("ArrowLeft")
        assert selected(page) == parent
    page.keyboard.press("ArrowRight")
    child = records[selected(page)]
    assert child.parent_id == "nanochat"
    for key in ("ArrowDown", "ArrowUp", "ArrowUp"):
        page.keyboard.press(key)
    assert records[selected(page)].generation == child.generation
    for selector in ("#search", "#order", "#list button", "summary"):
        tab_until(page, selector)


# Screens -----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [320, 768])
def test_nothing_overflows_a_narrow_screen(opened, report, width):
    page = opened(report, width=width, height=740)
    draw_everything(page)
    page.evaluate("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    widest = page.evaluate(
        "Math.max(...[...document.querySelectorAll('.chart')].map((c) => c.scrollWidth))"
    )
    assert 200 < widest <= width


def luminance(page, script):
    """Returns the relative luminance of the CSS colour that a script returns."""
    colour = page.evaluate(script)
    rgb = np.array([float(x) for x in colour[colour.index("(") + 1 : -1].split(",")][:3]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


PAPER = "getComputedStyle(document.body).backgroundColor"
LINE = "getComputedStyle(document.querySelectorAll('[data-chart=curves] .js-line')[1]).stroke"
CONTRASTS = {  # smallest WCAG contrast with the page
    "getComputedStyle(document.body).color": 7,
    "getComputedStyle(document.querySelector('[data-chart=curves] .xtick text')).fill": 4.5,
    LINE: 3,
}


def test_dark_and_light_are_readable_and_change_while_the_page_is_open(opened, report):
    page = opened(report, dark=True)
    colours = set()
    for scheme in ("dark", "light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_timeout(100)
        paper = luminance(page, PAPER)
        assert (paper < 0.05) == (scheme == "dark")
        for script, least in CONTRASTS.items():
            low, high = sorted((paper, luminance(page, script)))
            assert (high + 0.05) / (low + 0.05) > least, script
        colours.add(page.evaluate(LINE))
    assert len(colours) == 2


# Thousands of candidates -------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(finished, records, tmp_path_factory):  # noqa: F811
    """Returns a report and its 3,000 records, most of which are mutants from a tiny search."""
    folder = tmp_path_factory.mktemp("many") / "run"
    (folder / "telemetry").mkdir(parents=True)
    for name in ("config.json", "summary.json"):
        shutil.copy(finished[0] / name, folder)
    rng = np.random.default_rng(0)
    everyone = list(records.values())
    parents = [record for record in everyone if record.recipe is None]
    seen = {canonical(record.spec) for record in everyone}
    files = [finished[0] / "telemetry" / f"{name}.npz" for name in records]
    for file in files:
        (folder / "telemetry" / file.name).symlink_to(file)
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
        (folder / "telemetry" / f"{child.id}.npz").symlink_to(files[number % len(files)])
    archive.append(folder / "archive.jsonl", everyone)
    return write_report(folder), everyone


def thread_seconds(session):
    """Returns the CPU time of the page's main thread so far in seconds."""
    metrics = session.send("Performance.getMetrics")["metrics"]
    return next(metric["value"] for metric in metrics if metric["name"] == "ThreadTime")


@pytest.mark.slow
def test_three_thousand_candidates_load_within_three_seconds(browser, many):
    path, _ = many
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]")
    ready = thread_seconds(session)
    page.evaluate("document.getElementById('tree').scrollIntoView({behavior: 'instant'})")
    page.wait_for_selector("#tree-chart[data-drawn]")
    assert 0.05 < ready < thread_seconds(session) < SECONDS
    nodes = page.evaluate(
        """document.getElementById("tree-chart").data.filter((t) => t.customdata)
             .map((t) => t.x.length).reduce((a, b) => a + b)"""
    )
    assert nodes == MANY
    page.close()


@pytest.mark.slow
def test_any_of_three_thousand_candidates_is_found(opened, many):
    path, everyone = many
    page = opened(path)
    record = everyone[1777]
    page.locator("#search").fill(record.id)
    assert page.locator("#page").text_content().startswith("1 found")
    page.locator("#list button").click()
    assert shown_changes(page) == recorded_changes(record)
    page.locator("#search").fill(record.operator)
    count = sum(other.operator == record.operator for other in everyone)
    assert page.locator("#page").text_content().startswith(f"{count} found")
    assert page.locator("#list tbody tr").count() <= 20
    assert path.stat().st_size < 20e6
    assert json.loads(page.locator("#data").text_content())["candidates"]["points"] >= 6
