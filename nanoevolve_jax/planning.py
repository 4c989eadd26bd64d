"""Plan of a campaign, which `--config.plan=true` prints instead of training."""

import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.table import Table

from nanoevolve_jax.evidence.work import MAIN
from nanoevolve_jax.evolution.campaign import generation_sizes
from nanoevolve_jax.evolution.plan import (
    SCENARIOS,
    Pace,
    Row,
    costs_of,
    given_pace,
    machine_counts,
    phases,
    plan,
    scenario_hours,
    total,
)
from nanoevolve_jax.execution.measurements import Rehearsal
from nanoevolve_jax.execution.population import make_programs
from nanoevolve_jax.execution.settings import make_baseline, make_recipe, make_task
from nanoevolve_jax.execution.train import Candidate
from nanoevolve_jax.site import use_devices, with_lanes
from nanoevolve_jax.terminal.console import Console

_REPEATS = 3  # timed segments and validations, after one of each to warm up


def print_plan(config: ConfigDict, console: Console) -> None:
    """Prints the plan of a config's campaign and two rough scenarios.

    If the config sets `step_seconds`, nothing is measured, so the plan can describe another
    machine. The numbers of devices and lanes are then those of the config, where 0 counts as 1.

    Args:
      config: Full configuration.
      console: Console that prints the plan.
    """
    segment_steps = min(config.train.segment_steps, config.train.steps)
    if config.step_seconds:
        width = max(1, config.devices) // config.data_parallel * max(1, config.lanes)
        pace = given_pace(config.step_seconds, costs_of(config)[MAIN], width)
        source = "as given"
    else:
        devices = use_devices(config)
        config = with_lanes(config, devices, max(generation_sizes(config)))
        console.print_line("compiling and timing the training program")
        pace = measured_pace(config, devices, segment_steps)
        source = f"measured on this {jax.devices()[0].device_kind}"
    machines, costs = machine_counts(config.machines), costs_of(config)
    parts = {
        phase.name: plan(phase, costs, pace, segment_steps=segment_steps, machines=machines)
        for phase in phases(config, pace.width)
    }
    console.page(plan_table(parts, machines))
    for line in (
        f"{pace.step:.3g} s a candidate-step, {pace.evaluation:.3g} s a validation of a candidate, "
        f"{source}; candidates at once on a machine: {pace.width}",
        "compilation, data, checkpoints, wider ranges of learning rates and a second baseline "
        "come on top",
        "tuning asks for one machine's candidates at a time, so more machines do not help it",
    ):
        console.print_line(line)
    console.page(scenario_table(machines))
    console.print_line(f"nothing was trained, and nothing written to {config.workdir}")


def measured_pace(config: ConfigDict, devices: int, segment_steps: int) -> Pace:
    """Returns the pace of this process, from median times of the compiled programs.

    Args:
      config: Full configuration, with the number of lanes.
      devices: Number of devices.
      segment_steps: Steps per timed segment.
    """
    task = make_task(config)
    programs = make_programs(task, devices=devices, lanes=config.lanes)
    candidate = Candidate(make_baseline(config), make_recipe(config))
    rows = config.data.validation_rows
    rehearsal = Rehearsal(task, programs, candidate, segment_steps, rows)
    rehearsal.segment()
    rehearsal.evaluation()
    pairs = [(_seconds(rehearsal.segment), _seconds(rehearsal.evaluation)) for _ in range(_REPEATS)]
    segment, evaluation = np.median(pairs, axis=0) / programs.width
    return Pace(float(segment) / segment_steps, float(evaluation), programs.width)


def _seconds(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def plan_table(parts: dict[str, list[Row]], machines: Sequence[int]) -> Table:
    """Returns the table of all stages, with sums per phase and totals without and with a win.

    Args:
      parts: Rows of the plan by phase.
      machines: Numbers of machines for which hours are shown.
    """
    numbers = ["runs", "tokens", "FLOPs"]
    table = _table("A calibrated campaign", ["stage"], numbers, machines)
    sums = {name: total(name, rows) for name, rows in parts.items()}
    for name, rows in parts.items():
        for row in rows:
            table.add_row(*_cells(row))
        table.add_section()
        table.add_row(*_cells(sums[name]), style="bold")
        table.add_section()
    without = [row for name, row in sums.items() if name != "after a win"]
    table.add_row(*_cells(total("all, without a win", without)), style="bold")
    table.add_row(*_cells(total("all, with a win", sums.values())), style="bold")
    return table


def scenario_table(machines: Sequence[int]) -> Table:
    """Returns the table of the two rough scenarios.

    Args:
      machines: Numbers of machines for which hours are shown.
    """
    words = ["scenario", "screening", "confirmation", "baselines"]
    table = _table("In round figures", words, [], machines)
    for name, own in SCENARIOS.items():
        table.add_row(
            name,
            f"{own.generations} x {own.population} x {own.screening:g} h",
            f"{own.generations} x {own.promoted} x {own.seeds} seeds x {own.confirmation:g} h",
            f"{own.baselines} x {own.confirmation:g} h",
            *(f"{hours:.0f}" for hours in scenario_hours(own, machines)),
        )
    return table


def _table(
    title: str, words: Sequence[str], numbers: Sequence[str], machines: Sequence[int]
) -> Table:
    table = Table(title=f"{title}: hours on 1 machine, which are machine-hours, and on more")
    for column in words:
        table.add_column(column, overflow="fold")
    for column in (*numbers, *(f"on {count}" for count in machines)):
        table.add_column(column, justify="right")
    return table


def _cells(row: Row) -> list[str]:
    return [
        row.stage,
        f"{row.runs:,}",
        f"{row.tokens:.1e}",
        f"{row.flops:.1e}",
        *(f"{hours:.2f}" if hours < 100 else f"{hours:,.0f}" for hours in row.hours),
    ]
