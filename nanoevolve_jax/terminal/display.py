"""Output of a run: a live picture on a terminal, plain lines elsewhere, a table at the end."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.live import Live
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

from nanoevolve_jax.evidence.runs import Run
from nanoevolve_jax.evidence.trajectories import SCREENED, read_telemetry
from nanoevolve_jax.evolution import tournament
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.execution import engine
from nanoevolve_jax.reporting.descriptions import lineage_in_one_line
from nanoevolve_jax.terminal.board import Lane, picture
from nanoevolve_jax.terminal.console import Console

_LIVE_SECONDS = 0.5  # minimum time between two pictures
_PLAIN_SECONDS = 10.0  # minimum time between lines of progress without a terminal
_ONE_LINE = Column(no_wrap=True, overflow="ellipsis")


class Display:
    """Progress of training runs; a context manager."""

    def __init__(self, console: Console, *, total_steps: int, batch_tokens: float, task: str):
        """Starts with nothing shown.

        Args:
          console: Console to print on.
          total_steps: Expected number of candidate-steps, including those already done.
          batch_tokens: Tokens per step.
          task: What the command does, in one word.
        """
        self._console = console
        self._total = total_steps
        self._batch_tokens = batch_tokens
        self._done = 0  # candidate-steps of finished batches and of earlier processes
        self._running: dict[int, list[Lane]] = {}  # running jobs by batch
        self._lanes: list[Lane] = []  # running jobs at the latest report
        self._records: Sequence[Record] = ()
        self._stages: dict[str, list[Run]] = {}
        self._reported: list[tuple[float, int]] = []  # (time, candidate-steps)
        self._printed = time.monotonic()
        self._drawn = 0.0  # time of the latest picture
        self._note = ""
        # A dumb terminal cannot erase a line, so it gets plain lines too.
        self._is_live = console.is_interactive
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TextColumn("{task.percentage:>3.0f}%", markup=False),
            TextColumn("{task.fields[status]}", markup=False, table_column=_ONE_LINE),
            console=console,
            expand=True,
        )
        self._task = self._bar.add_task(task, total=self._total, status="compiling")
        # Drawn by this thread alone, after each change.
        self._live = Live(self._bar, console=console, auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> "Display":
        if self._is_live:
            self._live.start(refresh=True)
        return self

    def __exit__(self, *exception) -> None:
        if self._is_live:
            self._live.update(self._bar, refresh=True)
            self._live.stop()

    def log(self, line: str) -> None:
        """Prints one line."""
        self._console.print_line(line)

    def show_records(self, records: Sequence[Record]) -> None:
        """Shows all candidates so far, and the best one beside the rate."""
        for best in tournament.survivors(records, 1):
            self._note = f"best {best.id} {best.merit.val_bpb:.4f} | "
        self._records = records
        self._draw()

    def note(self, line: str) -> None:
        """Shows a note beside the rate."""
        self._note = f"{line} | "
        self._bar.update(self._task, status=self._status() if self._reported else line)
        self._draw()

    def on_run(self, run: Run) -> None:
        """Shows a finished run of a stage other than screening."""
        self._stages.setdefault(run.stage, []).append(run)

    def already_done(self, steps: int) -> None:
        """Adds the candidate-steps that earlier processes trained."""
        self._done += steps

    def expect(self, total_steps: int) -> None:
        """Sets the expected number of candidate-steps."""
        self._total = total_steps
        self._bar.update(self._task, total=total_steps)

    def expect_more(self, steps: int) -> None:
        """Adds to the expected number of candidate-steps."""
        self.expect(self._total + steps)

    def on_progress(self, progress: engine.Progress) -> None:
        """Shows the progress of an engine."""
        before = self._running.get(progress.batch, [])
        self._running[progress.batch] = advanced(before, progress)
        now = time.monotonic()
        self._lanes = [lane for lanes in self._running.values() for lane in lanes]
        done = self._done + sum(lane.step for lane in self._lanes)
        self._reported = [*self._reported[-20:], (now, done)]
        status = self._status()
        self._bar.update(self._task, completed=done, status=status)
        if now - self._drawn >= _LIVE_SECONDS:
            self._draw()
        if progress.step < progress.steps:
            return
        self._done += sum(lane.step for lane in self._running.pop(progress.batch))
        if not self._is_live and now - self._printed >= _PLAIN_SECONDS:
            self._printed = now
            losses = ", ".join(f"{x:.4f}" for x in progress.val_bpb)
            self.log(f"{done}/{self._total} steps | val bpb {losses} | {status}")

    def _draw(self) -> None:
        if self._is_live:
            self._drawn = time.monotonic()
            shown = picture(self._bar, self._lanes, self._records, self._stages)
            self._live.update(shown, refresh=True)

    def _status(self) -> str:
        (t0, d0), (t1, d1) = self._reported[0], self._reported[-1]
        if d1 <= d0:
            return ""
        rate = (d1 - d0) / (t1 - t0)
        left = max(0.0, self._total - d1) / rate
        return f"{self._note}{rate * self._batch_tokens:,.0f} tokens/s | {left:.0f} s left"


def advanced(lanes: Sequence[Lane], progress: engine.Progress) -> list[Lane]:
    """Returns the lanes of a batch after a report; a new batch in its place starts again."""
    known = {lane.name: lane.losses for lane in lanes if lane.step < progress.step}
    none = np.zeros(0, np.float32)
    return [
        Lane(
            name,
            progress.step,
            progress.steps,
            np.concatenate([known.get(name, none), progress.loss[i]]),
            float(progress.val_bpb[i]),
        )
        for i, name in enumerate(progress.names)
    ]


class DataDisplay:
    """Progress of downloading, tokenising and packing; a context manager."""

    def __init__(self, console: Console):
        self._console = console
        self._live = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_interactive,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "DataDisplay":
        self._live.start()
        return self

    def __exit__(self, *exception) -> None:
        self._live.stop()

    def on_progress(self, what: str, done: int, total: int) -> None:
        """Shows the progress of a task.

        Args:
          what: Name of the task.
          done: Finished part.
          total: Size of the task in the same unit; 0 if it is not known.
        """
        if what not in self._tasks:
            self._tasks[what] = self._live.add_task(what, total=total or None)
            if not self._console.is_interactive:
                self._console.print_line(what)
        self._live.update(self._tasks[what], completed=done, total=total or None)


def generation_line(generation: int, records: Sequence[Record], against: str) -> str:
    """Returns one line about a finished generation."""
    baseline, best = records[0], tournament.survivors(records, 1)[0]
    dead = sum(r.failure is not None for r in records if r.generation == generation)
    return (
        f"generation {generation}: best {best.id} {best.merit.val_bpb:.4f} bpb, "
        f"{best.merit.val_bpb - baseline.merit.val_bpb:+.4f} against {against}"
        f"{f', {dead} dead' if dead else ''}"
    )


def results_table(records: Sequence[Record], count: int, against: str) -> Table:
    """Returns a table of the best candidates and the baseline."""
    baseline = records[0]
    table = Table(title=f"Best candidates, screening run, against {against}")
    for column in ("id", "val bpb", "change", "cost", "score"):
        table.add_column(column, justify="left" if column == "id" else "right")
    table.add_column("lineage", overflow="fold")
    shown = tournament.survivors(records, count)
    for record in shown if baseline in shown else [*shown, baseline]:
        merit = record.merit
        table.add_row(
            record.id,
            f"{merit.val_bpb:.4f}",
            f"{merit.val_bpb - baseline.merit.val_bpb:+.4f}",
            f"{merit.cost / baseline.cost:.3f}x",
            f"{record.score:+.4f}",
            lineage_in_one_line(records, record.id),
        )
    return table


def where_things_lie(folder: Path) -> list[str]:
    """Returns one line for each file that a search writes."""
    report = folder / "report.html"
    return [
        *([f"{report}: report for a browser"] if report.exists() else []),
        f"{folder / 'summary.json'}: summary of this search",
        f"{folder / 'archive.jsonl'}: every candidate with its spec and lineage",
        f"{folder / 'telemetry'}: sensors, gate, actuators and loss of every step",
        f"{folder / 'config.json'}: configuration, versions, device and fingerprints",
    ]


def baseline_curve(folder: Path) -> str:
    """Returns the validation curve of the baseline in one line."""
    data = read_telemetry(folder, tournament.BASELINE_ID, SCREENED)
    points = zip(data["validation_step"], data["validation_bpb"], strict=True)
    return ", ".join(f"{bpb:.3f} at step {step}" for step, bpb in points)
