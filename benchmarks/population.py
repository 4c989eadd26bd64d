"""Tokens a second, summed over lanes, for 1, 2, 4, ... lanes until memory ends.

  python -m benchmarks.population --variants=cpu,d4 --out=results/population_cpu.json

Every number of lanes is timed in turn with one lane and with a big matmul, whose rate is the
device's measured peak: utilisation is the model's FLOPs over it. A CPU gains nothing from lanes, so
there the same benchmark also times one candidate on each of two virtual devices against two
candidates in turn on one device. On a CPU `:d4` and `:d12` run with XLA's attention in float32.
What would take longer than `--seconds` is left out, and said so.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from rich.table import Table

from benchmarks import options
from benchmarks.timing import (
    CompileClock,
    Run,
    big_matmul,
    environment,
    interleaved,
    ratio,
    seconds,
)
from nanoevolve_jax.execution.memory import compiled_bytes, is_out_of_memory
from nanoevolve_jax.execution.population import make_programs
from nanoevolve_jax.execution.rehearsal import Rehearsal
from nanoevolve_jax.execution.settings import make_baseline, make_recipe, make_task
from nanoevolve_jax.execution.train import Candidate
from nanoevolve_jax.terminal.console import Console

_LANES = flags.DEFINE_integer("max_lanes", 0, "most lanes; 0: what memory holds, on a CPU 4", 0)


class Bench:
    """One variant on this process's device."""

    def __init__(self, config: Any, steps: int):
        self.config, self.steps, self.task = config, steps, make_task(config)
        self.step_flops = self.task.model.flops_per_token * self.task.batch_tokens

    def rehearsal(self, lanes: int, devices: int = 1) -> Rehearsal:
        """The training program for so many lanes."""
        programs = make_programs(self.task, devices=devices, lanes=lanes)
        candidate = Candidate(make_baseline(self.config), make_recipe(self.config))
        return Rehearsal(self.task, programs, candidate, self.steps, rows=1)

    def tokens(self, candidates: int) -> float:
        """Tokens of a segment."""
        return candidates * self.steps * self.task.batch_tokens

    def flops(self, candidates: int, rounds: int) -> float:
        """FLOPs of a cell: warming and the rounds, each with a lane beside it."""
        return (rounds + 1) * (candidates + 1) * self.steps * self.step_flops


def peak_bytes(compiled: Any, before: int) -> tuple[int, str]:
    """The most memory in use, and who says so.

    Args:
      compiled: the program.
      before: what the device had as its peak before the program ran.
    """
    stats = jax.devices()[0].memory_stats() or {}
    if stats.get("peak_bytes_in_use", 0) > before:
        return stats["peak_bytes_in_use"], "device"
    return compiled_bytes(compiled), "compiler"


def device_peak() -> int:
    """The device's own high-water mark; 0 where it keeps none."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def measure_lanes(bench: Bench, lanes: int, big: tuple, clock: CompileClock, rounds: int) -> dict:
    """One cell: so many lanes, one lane and the matmul, in turn."""
    before = device_peak()
    clock.restart()
    subject = bench.rehearsal(lanes)
    compiled = subject.compile()
    compile_seconds = clock.seconds
    one = subject if lanes == 1 else bench.rehearsal(1)
    run, flops = big
    runs = {"lanes": subject.segment, "one": one.segment, "matmul": run}
    if lanes == 1:
        del runs["one"]
    for warm in runs.values():
        warm()
    times = interleaved(runs, rounds)
    memory, source = peak_bytes(compiled, before)
    rate = bench.tokens(lanes) / times["lanes"]
    peak = flops / times["matmul"].min()  # a peak is what the device can do, not its average
    gain = 1.0 if lanes == 1 else lanes * ratio(times["one"], times["lanes"])
    return {
        "lanes": lanes,
        "tokens_per_second": float(np.median(rate)),
        "times_one_lane": gain,
        "utilisation": float(np.median(rate * bench.task.model.flops_per_token / peak)),
        "matmul_flops": float(peak),
        "peak_bytes": memory,
        "peak_bytes_by": source,
        "compile_seconds": compile_seconds,
    }


def measure_devices(bench: Bench, rounds: int) -> dict[str, float]:
    """One candidate on each virtual device, against as many in turn on one device."""
    count = len(jax.devices())
    together, alone = bench.rehearsal(1, devices=count), bench.rehearsal(1)

    def in_turn():
        for _ in range(count):
            alone.segment()

    runs = {"together": together.segment, "in turn": in_turn}
    for warm in runs.values():
        warm()
    times = interleaved(runs, rounds)
    return {
        "devices": count,
        "tokens_per_second": float(np.median(bench.tokens(count) / times["together"])),
        "times_in_turn": ratio(times["in turn"], times["together"]),
    }


def measure(
    bench: Bench, on_cpu: bool, clock: CompileClock, rounds: int, found: dict[str, Any], save: Run
) -> None:
    """Every cell of a size until memory or the time allowed ends.

    Args:
      bench: the size.
      on_cpu: whether the devices are virtual ones.
      clock: of compilations.
      rounds: repeats.
      found: what is found, filled in cell by cell.
      save: called after each.
    """
    model = bench.config.model
    found |= {
        "dtype": model.dtype,
        "attention": model.attention,
        "batch_size": bench.task.batch_size,
        "steps": bench.steps,
        "model_flops_a_step": bench.step_flops,
        "cells": [],
        "ended": "stopped from outside",
        "virtual_devices": None,
    }
    big = big_matmul(model.dtype)
    peak = big[1] / min(seconds(big[0]) for _ in range(3))
    most = _LANES.value or (4 if on_cpu else 1 << 20)
    ended = f"{most} lanes: as many as asked for"
    for lanes in (1 << i for i in range(most.bit_length())):
        if reason := options.too_long(bench.flops(lanes, rounds), peak):
            ended = f"{lanes} lanes: {reason}"
            break
        try:
            found["cells"].append(measure_lanes(bench, lanes, big, clock, rounds))
            save()
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            ended = f"{lanes} lanes: more than memory holds"
            break
    count = len(jax.devices())
    if on_cpu and count > 1 and not options.too_long(bench.flops(2 * count, rounds), peak):
        found["virtual_devices"] = measure_devices(bench, rounds)
    found["ended"] = ended
    save()


def show(console: Console, results: dict[str, Any]) -> None:
    """Prints a line a cell."""
    table = Table(title="Tokens a second over all lanes; each against one lane, run in turn")
    columns = ("", "tokens/s", "to one lane", "of matmul peak", "memory, MB", "says", "compile, s")
    for column in columns:
        table.add_column(column, justify="left" if not column else "right")
    ends = []
    for variant, found in results.items():
        for cell in found["cells"]:
            table.add_row(
                f":{variant}, {cell['lanes']} lanes",
                f"{cell['tokens_per_second']:,.0f}",
                f"{cell['times_one_lane']:.2f}",
                f"{cell['utilisation']:.0%}",
                f"{cell['peak_bytes'] / 1e6:,.0f}",
                cell["peak_bytes_by"],
                f"{cell['compile_seconds']:.1f}",
            )
        if devices := found["virtual_devices"]:
            table.add_row(
                f":{variant}, {devices['devices']} virtual devices",
                f"{devices['tokens_per_second']:,.0f}",
                f"{devices['times_in_turn']:.2f}",
            )
        ends.append(f":{variant}, {found['ended']}")
        table.add_section()
    console.print(table)
    for line in ends:
        console.print(line, highlight=False)


def main(argv: Sequence[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    jax.config.update("jax_num_cpu_devices", 2)
    clock, rounds = CompileClock(), options.rounds(5)
    on_cpu = jax.devices()[0].platform == "cpu"
    results: dict[str, Any] = {}

    def save():
        options.write(environment("benchmarks.population") | {"results": results})

    for variant, config in options.configs(on_cpu).items():
        bench = Bench(config, options.steps(variant, on_cpu))
        measure(bench, on_cpu, clock, rounds, results.setdefault(variant, {}), save)
    show(Console(width=110), results)


if __name__ == "__main__":
    app.run(main)
