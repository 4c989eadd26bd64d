"""Measures candidates per hour, and the fraction of a search that is not spent on training.

  python -m benchmarks.search --out=results/search_cpu.json

The actual command runs twice, each time in a fresh process. The first run has empty caches. The
second run uses another run folder, with the packed rows and compiled programs of the first run.
Slow functions are wrapped and timed, and time inside a nested timed function counts only for that
function, so the parts add up to the wall time of the process. Compiled work consists of the three
programs for initial state, training and validation. The goal is to spend at most 10 % of the second
run on other work.
"""

import contextlib
import functools
import io
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict
from rich.table import Table

from benchmarks import options
from benchmarks.timing import COMPILING, environment, this_device
from nanoevolve_jax import search, site
from nanoevolve_jax.evolution import campaign
from nanoevolve_jax.execution.checkpoint import Checkpoints
from nanoevolve_jax.execution.engine import LocalEngine
from nanoevolve_jax.execution.population import Programs
from nanoevolve_jax.terminal.console import Console
from nanoevolve_jax.tracking.log import Log
from nanoevolve_jax.tracking.tensorboard import TensorBoard

_PREPARED = flags.DEFINE_bool(
    "prepared", False, "take rows from --cache, so only the programs of the first run are cold"
)

COMPILED = ("init_population", "train_segment", "evaluate_population")
GOAL = 0.10  # largest fraction of the second run outside compiled work
_COMPILATION, _START = "tracing, compiling, loading programs", "interpreter, imports"
# Timed functions by part, as pairs of owner and attribute.
_PARTS = {
    "devices": [(site, "use_devices")],
    "rows": [(site, "load_rows")],
    "feed of segments": [(LocalEngine, "_segment"), (Programs, "place")],
    "checkpoints": [(Checkpoints, name) for name in ("__init__", "boundary", "restore", "close")],
    "archive, telemetry": [(campaign.archive, "append"), (campaign, "save_telemetry")],
    "counted cost": [(campaign, "step_flops")],
    "proposals": [(campaign.Campaign, "ask")],
    "event files": [(TensorBoard, "__init__"), (Log, "records"), (Log, "candidate")],
}


class Parts:
    """Clock of the time per part. Time in a nested part counts only for the nested part."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]  # time in seconds of the nested parts, per open part

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the time of the block to a part."""
        started = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            whole = time.perf_counter() - started
            self._take(part, whole - self._inner.pop())
            self._inner[-1] += whole

    def on_event(self, event: str, duration: float, **facts: Any) -> None:
        """Adds a duration that JAX reports to the part of compilation.

        The duration is subtracted from the part that is open.

        Args:
          event: Name of the event.
          duration: Duration in seconds.
          **facts: Unused details of the event.
        """
        del facts
        if event in COMPILING:
            self._take(_COMPILATION, duration)
            self._inner[-1] += duration

    def wrap(self, part: str, function: Callable, wait: bool = False) -> Callable:
        """Returns a timed version of a function.

        Args:
          part: Part to which the time is added.
          function: Function to time.
          wait: Whether to wait until the result is computed on the device.
        """

        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            with self.timed(part):
                result = function(*args, **kwargs)
                return jax.block_until_ready(result) if wait else result

        return wrapped

    def _take(self, part: str, seconds: float) -> None:
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds


class _Compiled:
    """Compiled program whose calls are timed and which can still be traced."""

    def __init__(self, parts: Parts, name: str, program: Any):
        self._program, self._run = program, parts.wrap(name, program, wait=True)

    def __call__(self, *args):
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(args))
        return self._program(*args) if traced else self._run(*args)


def timed_search(config: ConfigDict, spawned: float) -> dict[str, Any]:
    """Runs a search in this fresh process and returns its timings.

    Args:
      config: Config of the search.
      spawned: Time at which this process was requested, in seconds since the epoch.
    """
    logging.set_verbosity(logging.WARNING)
    parts = Parts()
    parts.seconds[_START] = time.time() - spawned
    jax.monitoring.register_event_duration_secs_listener(parts.on_event)
    make_programs = site.make_programs

    def timed_programs(*args, **kwargs):
        programs = make_programs(*args, **kwargs)
        timed = {name: _Compiled(parts, name, getattr(programs, name)) for name in COMPILED}
        return programs._replace(**timed)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(site, "make_programs", timed_programs))
        for part, places in _PARTS.items():
            for owner, name in places:
                wrapped = parts.wrap(part, getattr(owner, name))
                stack.enter_context(mock.patch.object(owner, name, wrapped))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        with parts.timed("everything else"):
            search.search(config)
    summary = json.loads((Path(config.workdir) / "summary.json").read_text())
    wall = time.time() - spawned
    outside = wall - sum(parts.seconds[name] for name in COMPILED)
    return {
        "device": this_device(),
        "wall_seconds": wall,
        "candidates": summary["evaluated"] + summary["dead"],
        "candidates_an_hour": 3600 * (summary["evaluated"] + summary["dead"]) / wall,
        "tokens_per_second": summary["tokens_trained"] / wall,
        "xla_compilations": summary["xla_compilations"],
        "outside_share": outside / wall,
        "parts": dict(sorted(parts.seconds.items(), key=lambda item: -item[1])),
    }


def in_fresh_process(config: ConfigDict) -> dict[str, Any]:
    """Returns the timings of a search in a new process.

    Args:
      config: Config of the search.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(timed_search, config, time.time()).result()


def show(console: Console, results: dict[str, dict]) -> None:
    """Prints one line per part, beginning with compiled work."""
    table = Table(title="Seconds of a search by part, and their share of its wall time")
    table.add_column("")
    for name in results:
        table.add_column(f"{name}, s", justify="right")
        table.add_column("share", justify="right")

    def row(label, values, style=None):
        cells = [
            cell
            for value, run in zip(values, results.values(), strict=True)
            for cell in (f"{value:.2f}", f"{value / run['wall_seconds']:.1%}")
        ]
        table.add_row(label, *cells, style=style)

    names = {name: None for run in results.values() for name in run["parts"]}
    others = [name for name in names if name not in COMPILED]
    for group in (COMPILED, others):
        for name in group:
            row(name, [run["parts"].get(name, 0.0) for run in results.values()])
        table.add_section()
    row(
        "outside the compiled programs",
        [run["outside_share"] * run["wall_seconds"] for run in results.values()],
        "bold",
    )
    row("wall time", [run["wall_seconds"] for run in results.values()], "bold")
    console.print(table)
    for name, run in results.items():
        console.print(
            f"{name}: {run['candidates_an_hour']:,.0f} candidates per hour, "
            f"{run['tokens_per_second']:,.0f} tokens/s, compiled: {run['xla_compilations']}",
            highlight=False,
            soft_wrap=True,
        )


def main(argv: Sequence[str]) -> None:
    """Runs the search of each size twice, prints the parts and writes the results."""
    del argv
    logging.set_verbosity(logging.WARNING)
    console = Console(width=110)
    results: dict[str, Any] = {}
    for variant, config in options.configs(on_cpu=False).items():
        with tempfile.TemporaryDirectory() as scratch:
            config.data.cache_dir = options.CACHE.value if _PREPARED.value else f"{scratch}/cache"
            # JAX reads this variable in the new processes.
            os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{scratch}/xla"
            runs = results[variant] = {}
            for name in ("first run", "second run"):
                config.workdir = f"{scratch}/{name}"
                runs[name] = in_fresh_process(config)
                origin = environment("benchmarks.search", runs[name].pop("device"))
                options.write(origin | {"results": results})
        show(console, runs)
        share = runs["second run"]["outside_share"]
        console.print(
            f":{variant}: {share:.1%} of the second run is outside compiled work, "
            f"goal at most {GOAL:.0%}",
            highlight=False,
        )


if __name__ == "__main__":
    app.run(main)
