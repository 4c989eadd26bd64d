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


class Display:
    """Progress of a search; a context manager."""

    def __init__(self, console: Console, *, total_runs: int, steps: int, batch_tokens: float):
        self._console = console
        self._total = total_runs * steps
        self._batch_tokens = batch_tokens
        self._done = 0  # candidate-steps, of finished batches and before a resume
        self._reported: list[tuple[float, int]] = []  # (time, candidate-steps)
        self._steps = steps
        self._best: tuple[str, float] | None = None
        self._live = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[status]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._live.add_task("search", total=self._total, status="compiling")

    def __enter__(self) -> "Display":
        self._live.start()
        return self

    def __exit__(self, *exception) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        """One line that stays."""
        self._console.print(line, highlight=False, soft_wrap=True)

    def resume(self, records: Sequence[Record]) -> None:
        """Counts what an earlier process has done."""
        self._done = len(records) * self._steps
        if records:
            last = records[-1].generation
            self.say(f"resuming after generation {last}: {len(records)} candidates known")

    def on_progress(self, progress: engine.Progress) -> None:
        """Takes an engine's progress."""
        done = self._done + progress.jobs * progress.step
        self._reported = [*self._reported[-20:], (time.monotonic(), done)]
        status = self._status()
        self._live.update(self._task, completed=done, status=status)
        if progress.step >= self._steps:
            self._done = done
            if not self._console.is_terminal:
                losses = ", ".join(f"{x:.4f}" for x in progress.val_bpb)
                self.say(f"{done}/{self._total} steps | val bpb {losses} | {status}")

    def on_generation(self, generation: int, records: Sequence[Record]) -> None:
        """Says what a finished generation brought."""
        baseline, best = records[0], tournament.survivors(records, 1)[0]
        self._best = (best.id, best.merit.val_bpb)
        self._done = len(records) * self._steps
        dead = sum(r.failure is not None for r in records if r.generation == generation)
        self.say(
            f"generation {generation}: best {best.id} {best.merit.val_bpb:.4f} bpb, "
            f"{best.merit.val_bpb - baseline.merit.val_bpb:+.4f} against the untuned baseline"
            f"{f', {dead} dead' if dead else ''}"
        )

    def _status(self) -> str:
        (t0, d0), (t1, d1) = self._reported[0], self._reported[-1]
        if d1 <= d0:
            return ""
        rate = (d1 - d0) / (t1 - t0)
        best = f"best {self._best[0]} {self._best[1]:.4f} | " if self._best else ""
        left = (self._total - d1) / rate
        return f"{best}{rate * self._batch_tokens:,.0f} tokens/s | {left:.0f} s left"


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


def results_table(records: Sequence[Record], count: int) -> Table:
    """The best candidates and the baseline."""
    baseline = records[0]
    table = Table(title="Best candidates, one seed each, against an untuned baseline")
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
    return [
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
