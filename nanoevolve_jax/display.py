"""What a search shows: a live bar on a terminal, plain lines elsewhere, a table at the end."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from nanoevolve_jax.evolution import tournament
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.execution import engine

_PLAIN_SECONDS = 10.0  # between lines of progress where there is no terminal


class Display:
    """Progress of training runs; a context manager."""

    def __init__(self, console: Console, *, total_steps: int, batch_tokens: float, task: str):
        """Shows nothing yet.

        Args:
          console: where.
          total_steps: candidate-steps that are expected, those already done included.
          batch_tokens: tokens a step.
          task: what is being done, in a word.
        """
        self._console = console
        self._total = total_steps
        self._batch_tokens = batch_tokens
        self._done = 0  # candidate-steps, of finished batches and before a resume
        self._under_way: dict[int, int] = {}  # candidate-steps, by batch
        self._reported: list[tuple[float, int]] = []  # (time, candidate-steps)
        self._printed = time.monotonic()
        self._note = ""
        self._live = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[status]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._live.add_task(task, total=self._total, status="compiling")

    def __enter__(self) -> "Display":
        self._live.start()
        return self

    def __exit__(self, *exception) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        """One line that stays."""
        self._console.print(line, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """What stands beside the rate from now on, such as the best so far."""
        self._note = f"{text} | "

    def already_done(self, steps: int) -> None:
        """Candidate-steps that an earlier process trained."""
        self._done += steps

    def expect(self, total_steps: int) -> None:
        """Corrects how many candidate-steps there will be."""
        self._total = total_steps
        self._live.update(self._task, total=total_steps)

    def expect_more(self, steps: int) -> None:
        """Adds to the candidate-steps that are expected."""
        self.expect(self._total + steps)

    def on_progress(self, progress: engine.Progress) -> None:
        """Takes an engine's progress."""
        self._under_way[progress.batch] = progress.jobs * progress.step
        now, done = time.monotonic(), self._done + sum(self._under_way.values())
        self._reported = [*self._reported[-20:], (now, done)]
        status = self._status()
        self._live.update(self._task, completed=done, status=status)
        if progress.step < progress.steps:
            return
        self._done += self._under_way.pop(progress.batch)
        if not self._console.is_terminal and now - self._printed >= _PLAIN_SECONDS:
            self._printed = now
            losses = ", ".join(f"{x:.4f}" for x in progress.val_bpb)
            self.say(f"{done}/{self._total} steps | val bpb {losses} | {status}")

    def _status(self) -> str:
        (t0, d0), (t1, d1) = self._reported[0], self._reported[-1]
        if d1 <= d0:
            return ""
        rate = (d1 - d0) / (t1 - t0)
        left = max(0.0, self._total - d1) / rate
        return f"{self._note}{rate * self._batch_tokens:,.0f} tokens/s | {left:.0f} s left"


class DataDisplay:
    """Progress of downloading, tokenising and packing; a context manager."""

    def __init__(self, console: Console):
        self._console = console
        self._live = Progress(console=console, disable=not console.is_terminal, transient=True)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "DataDisplay":
        self._live.start()
        return self

    def __exit__(self, *exception) -> None:
        self._live.stop()

    def on_progress(self, what: str, done: int, total: int) -> None:
        """Takes what is being done, how much is done, and of how much (0: not known)."""
        if what not in self._tasks:
            self._tasks[what] = self._live.add_task(what, total=total or None)
            if not self._console.is_terminal:
                self._console.print(what, highlight=False)
        self._live.update(self._tasks[what], completed=done, total=total or None)


def in_words(records: Sequence[Record], candidate: str) -> str:
    """A candidate's lineage: 'annealing, then control.bias -0.5 -> -0.2'."""
    chain = tournament.lineage(records, candidate)
    steps = [r.id if r.operator in (None, "preset") else str(r.change) for r in chain]
    return ", then ".join(steps[1:] if chain[-1].operator == "preset" else steps)


def generation_line(generation: int, records: Sequence[Record], against: str) -> str:
    """What a finished generation brought."""
    baseline, best = records[0], tournament.survivors(records, 1)[0]
    dead = sum(r.failure is not None for r in records if r.generation == generation)
    return (
        f"generation {generation}: best {best.id} {best.merit.val_bpb:.4f} bpb, "
        f"{best.merit.val_bpb - baseline.merit.val_bpb:+.4f} against {against}"
        f"{f', {dead} dead' if dead else ''}"
    )


def results_table(records: Sequence[Record], count: int, against: str) -> Table:
    """The best candidates and the baseline."""
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
            in_words(records, record.id),
        )
    return table


def where_things_lie(folder: Path) -> list[str]:
    """One line for each thing a search leaves behind."""
    report = folder / "report.html"
    return [
        *([f"{report}: all of it to look at, in a browser"] if report.exists() else []),
        f"{folder / 'summary.json'}: the numbers of this search",
        f"{folder / 'archive.jsonl'}: every candidate with its spec and lineage",
        f"{folder / 'telemetry'}: sensors, gate, actuators and loss of every step",
        f"{folder / 'config.json'}: configuration, versions, device and fingerprints",
    ]


def baseline_curve(folder: Path) -> str:
    """The baseline's validation curve in one line."""
    with np.load(folder / "telemetry" / f"{tournament.BASELINE_ID}.npz") as data:
        points = zip(data["validation_step"], data["validation_bpb"], strict=True)
        return ", ".join(f"{bpb:.3f} at step {step}" for step, bpb in points)
