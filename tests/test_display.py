"""The progress display: a picture that fits the terminal, or plain lines without a terminal."""

import io
import re

import numpy as np
import pytest
from records import make_dead, make_record

from nanoevolve_jax.evidence.runs import Run
from nanoevolve_jax.execution.engine import Progress
from nanoevolve_jax.terminal import display as module
from nanoevolve_jax.terminal.board import LANES, Lane, picture
from nanoevolve_jax.terminal.console import Console
from nanoevolve_jax.terminal.display import Display, advanced
from nanoevolve_jax.terminal.sparkline import BLOCKS

LONG = "control.coefficients.loss_improvement_ema 0.0 -> -1.873 and more of it than there is room"


def make_records(count=12):
    """Returns an improving search of several generations that ends with a dead candidate."""
    records = [make_record(bpb=2.5)]
    for i in range(1, count):
        fields = {"score": 0.01 * i, "bpb": 2.5 - 0.01 * i, "generation": 1 + i // 4}
        records.append(make_record(f"g{1 + i // 4:03d}c{i:02d}", change=LONG, **fields))
    return [*records, make_dead("g009c00", generation=9)]


def make_lanes(count):
    losses = np.linspace(6.9, 3.1, 50).astype(np.float32)
    return [Lane(f"transfer: learning rate {i}", 50, 100, losses, 2.4) for i in range(count)]


def make_run(stage, bpb):
    return Run("key", stage, "main", {}, bpb, 3.0, None, None, 10, 100, [], 0.0)


STAGES = {
    f"transfer: learning rate and horizon {i}": [make_run("", x) for x in (2.2, 2.1, np.nan)]
    for i in range(6)
}


def drawn(width, lanes=2, height=24):
    """Returns the lines of a complete picture on a terminal of this width."""
    console = Console(record=True, force_terminal=True, width=width, height=height)
    with console.capture() as capture:
        console.print(picture("progress", make_lanes(lanes), make_records(), STAGES))
    return re.sub(r"\x1b\[[0-9;]*m", "", capture.get()).splitlines()


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
@pytest.mark.parametrize("lanes", [0, 1, LANES, 40])
def test_nothing_wraps_at_any_width(width, lanes):
    lines = drawn(width, lanes)
    assert all(len(line) <= width for line in lines)
    more = lanes > LANES
    table = 1 + min(lanes, LANES) + more if lanes else 0
    assert len(lines) == 1 + table + 1 + (1 + 5 + 1) + (1 + 4)


def test_the_fullest_picture_fits_eighty_by_twenty_four():
    lines = drawn(80, lanes=100)
    assert len(lines) <= 24
    assert f"and {100 - LANES} more" in lines[2 + LANES]


def test_the_picture_says_who_is_best_what_runs_and_how_losses_fall():
    text = "\n".join(drawn(80))
    for expected in ("g003c11", "2.3900", "-0.1100", "nanochat", "50/100", "3.1000", "2.4000"):
        assert expected in text
    assert "2.5000 to 2.3900" in text
    (running, *_) = [line for line in text.splitlines() if line.startswith("transfer: learning r")]
    curve = "".join(c for c in running if c in BLOCKS)
    assert len(curve) >= 15 and list(curve) == sorted(curve, reverse=True)
    # The best candidates come first, with the baseline below them.
    ids = [line.split()[0] for line in text.splitlines() if re.match(r"g\d|nanochat", line)]
    assert ids == ["g003c11", "g003c10", "g003c09", "g003c08", "g002c07", "nanochat"]


def make_progress(step, loss, names=("a", "b"), batch=0, steps=100):
    count = len(names)
    losses = np.full((count, 25), loss, np.float32)
    return Progress(count, step, steps, losses, np.full(count, 2.5), names, batch)


def test_a_lane_keeps_the_losses_of_all_its_reports_and_no_others():
    lanes = advanced([], make_progress(25, 5.0))
    lanes = advanced(lanes, make_progress(50, 4.0))
    assert [lane.losses.tolist() for lane in lanes] == 2 * [25 * [5.0] + 25 * [4.0]]
    begun_again = advanced(lanes, make_progress(25, 6.0))
    assert begun_again[0].losses.tolist() == 25 * [6.0]
    others = advanced(lanes, make_progress(75, 3.0, names=("c",)))
    assert [(lane.name, len(lane.losses)) for lane in others] == [("c", 25)]


def watch(console, monkeypatch, seconds=100.0):
    """Displays two batches of a search, with `seconds` between reports."""
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with Display(console, total_steps=400, batch_tokens=10.0, task="search") as display:
        display.show_records(make_records())
        for batch, names in enumerate((("a", "b"), ("c", "d"))):
            for step in (25, 50, 75, 100):
                now += seconds
                display.on_progress(make_progress(step, 700.0 / step, names, batch))
        display.on_run(make_run("promote", 2.1))
        display.log("a line that stays")


@pytest.mark.parametrize("environment", [{}, {"TERM": "dumb", "FORCE_COLOR": "1"}])
def test_without_a_terminal_there_are_plain_lines(monkeypatch, environment):
    output = io.StringIO()
    console = Console(
        file=output, width=80, _environ=environment, force_terminal=bool(environment) or None
    )
    watch(console, monkeypatch)
    text = re.sub(r"\x1b\[[0-9;]*m", "", output.getvalue())
    assert text.splitlines() == [
        "200/400 steps | val bpb 2.5000, 2.5000 | best g003c11 2.3900 | 5 tokens/s | 400 s left",
        "400/400 steps | val bpb 2.5000, 2.5000 | best g003c11 2.3900 | 5 tokens/s | 0 s left",
        "a line that stays",
    ]
    assert "\x1b[" not in output.getvalue() or environment


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}])
def test_a_terminal_shows_the_picture_and_keeps_the_bar_and_what_was_said(monkeypatch, environment):
    output = io.StringIO()
    terminal = {"force_terminal": True, "width": 80, "height": 24}
    watch(Console(file=output, _environ=environment, **terminal), monkeypatch)
    text = output.getvalue()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "training loss so far" in plain and "g003c11" in plain
    assert "a line that stays" in plain
    assert "best g003c11 2.3900 | 5 tokens/s | 0 s left" in plain.splitlines()[-1]
    if environment:
        colours = re.findall(r"\x1b\[([0-9;]*)m", text)
        assert not [c for c in colours for part in c.split(";") if part and int(part) >= 30]


def test_reports_in_quick_succession_are_not_all_drawn(monkeypatch):
    def drawings(seconds):
        output = io.StringIO()
        watch(Console(file=output, force_terminal=True, width=80), monkeypatch, seconds)
        return output.getvalue().count("training loss so far")

    assert drawings(100.0) >= 8
    assert drawings(0.001) <= 2
