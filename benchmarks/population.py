"""Measures tokens per second over all lanes, for 1, 2, 4, ... lanes until memory is full.

  python -m benchmarks.population --variants=cpu,d4 --out=results/population_cpu.json

Each number of lanes takes turns with one lane and with a large matrix product, whose rate is the
measured peak of the device. Utilisation is the rate of the model's FLOPs divided by that peak. A
CPU does not benefit from lanes, so on a CPU the benchmark also compares one candidate on each of
two virtual devices with two candidates in turn on one device. On a CPU, `:d4` and `:d12` use XLA's
attention in float32. A size stops, with a message, at the first cell that would take longer than
`--seconds`.
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
from nanoevolve_jax.execution.measurements import Rehearsal, compiled_bytes, is_out_of_memory
from nanoevolve_jax.execution.population import make_programs
from nanoevolve_jax.execution.settings import make_baseline, make_recipe, make_task
from nanoevolve_jax.execution.train import Candidate
from nanoevolve_jax.terminal.console import Console

_LANES = flags.DEFINE_integer("max_lanes", 0, "most lanes; 0: as memory allows, on a CPU 4", 0)


class Bench:
    """Size of the default search on the device of this process."""

    def __init__(self, config: Any, steps: int):
        self.config, self.steps, self.task = config, steps, make_task(config)
        self.step_flops = self.task.model.flops_per_token * self.task.batch_tokens

    def rehearsal(self, lanes: int, devices: int = 1) -> Rehearsal:
        """Returns a population that trains on random tokens.

        Args:
          lanes: Number of candidates per device.
          devices: Number of devices.
        """
        programs = make_programs(self.task, devices=devices, lanes=lanes)
        candidate = Candidate(make_baseline(self.config), make_recipe(self.config))
        return Rehearsal(self.task, programs, candidate, self.steps, rows=1)

    def tokens(self, candidates: int) -> float:
        """Returns the number of tokens per segment for a number of candidates."""
        return candidates * self.steps * self.task.batch_tokens

    def flops(self, candidates: int, rounds: int) -> float:
        """Returns the FLOPs of a cell, which are those of the warm-up and all rounds.

        Args:
          candidates: Number of candidates, to which one is added for the run with one lane.
          rounds: Number of repeats.
        """
        return (rounds + 1) * (candidates + 1) * self.steps * self.step_flops


def peak_bytes(compiled: Any, before: int) -> tuple[int, str]:
    """Returns the peak memory in bytes and its source, `device` or `compiler`.

    Args:
      compiled: Compiled program.
      before: Peak memory of the device in bytes before the program ran.
    """
    stats = jax.devices()[0].memory_stats() or {}
    if stats.get("peak_bytes_in_use", 0) > before:
        return stats["peak_bytes_in_use"], "device"
    return compiled_bytes(compiled), "compiler"


def device_peak() -> int:
    """Returns the peak memory in bytes that the device reports, or 0 if it does not report it."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def measure_lanes(bench: Bench, lanes: int, big: tuple, clock: CompileClock, rounds: int) -> dict:
    """Measures one cell, in which several lanes, one lane and a matrix product take turns.

    Args:
      bench: Size to measure.
      lanes: Number of lanes.
      big: Run of the matrix product, and its FLOPs.
      clock: Clock of compilations.
      rounds: Number of repeats.
    """
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
    peak = flops / times["matmul"].min()  # the fastest round, because a peak is not an average
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
    """Compares one candidate per virtual device with as many candidates in turn on one device.

    Args:
      bench: Size to measure.
      rounds: Number of repeats.
    """
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
    bench: Bench, on_cpu: bool, clock: CompileClock, rounds: int, results: dict[str, Any], save: Run
) -> None:
    """Measures all cells of a size until memory is full or a cell would take too long.

    Args:
      bench: Size to measure.
      on_cpu: Whether the devices are virtual devices of a CPU.
      clock: Clock of compilations.
      rounds: Number of repeats per cell.
      results: Dict that this function fills with results, cell by cell.
      save: Function to call after each cell.
    """
    model = bench.config.model
    results |= {
        "dtype": model.dtype,
        "attention": model.attention,
        "batch_size": bench.task.batch_size,
        "steps": bench.steps,
        "model_flops_a_step": bench.step_flops,
        "cells": [],
        "ended": "interrupted",
        "virtual_devices": None,
    }
    big = big_matmul(model.dtype)
    peak = big[1] / min(seconds(big[0]) for _ in range(3))
    most = _LANES.value or (4 if on_cpu else 1 << 20)
    ended = f"{most} lanes: the largest requested number"
    for lanes in (1 << i for i in range(most.bit_length())):
        if reason := options.too_long(bench.flops(lanes, rounds), peak):
            ended = f"{lanes} lanes: {reason}"
            break
        try:
            results["cells"].append(measure_lanes(bench, lanes, big, clock, rounds))
            save()
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            ended = f"{lanes} lanes: more than memory holds"
            break
    count = len(jax.devices())
    if on_cpu and count > 1 and not options.too_long(bench.flops(2 * count, rounds), peak):
        results["virtual_devices"] = measure_devices(bench, rounds)
    results["ended"] = ended
    save()


def show(console: Console, results: dict[str, Any]) -> None:
    """Prints one line per cell."""
    table = Table(title="Tokens per second over all lanes; each against one lane, in turn")
    columns = (
        "",
        "tokens/s",
        "to one lane",
        "of matmul peak",
        "memory, MB",
        "source",
        "compile, s",
    )
    for column in columns:
        table.add_column(column, justify="left" if not column else "right")
    ends = []
    for variant, result in results.items():
        for cell in result["cells"]:
            table.add_row(
                f":{variant}, {cell['lanes']} lanes",
                f"{cell['tokens_per_second']:,.0f}",
                f"{cell['times_one_lane']:.2f}",
                f"{cell['utilisation']:.0%}",
                f"{cell['peak_bytes'] / 1e6:,.0f}",
                cell["peak_bytes_by"],
                f"{cell['compile_seconds']:.1f}",
            )
        if devices := result["virtual_devices"]:
            table.add_row(
                f":{variant}, {devices['devices']} virtual devices",
                f"{devices['tokens_per_second']:,.0f}",
                f"{devices['times_in_turn']:.2f}",
            )
        ends.append(f":{variant}, {result['ended']}")
        table.add_section()
    console.print(table)
    for line in ends:
        console.print(line, highlight=False)


def main(argv: Sequence[str]) -> None:
    """Measures all sizes and writes the results after each cell."""
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
