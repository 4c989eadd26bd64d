"""Measures whether XLA flags make a run repeatable bit for bit, and how much time they cost.

  python -m benchmarks.repeat --variants=d4 --out=results/gpu/repeat.json

Under each set of flags in turn, the same segments are trained in two fresh processes, and the full
states are compared. Without a cache of the autotuner's choices, each compilation measures again
which kernel is fastest, and kernels round differently. One set of flags lets the two processes
share such a cache. The flags affect only GPUs. On a CPU, all states must agree.
"""

import hashlib
import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
import numpy as np
from absl import app, logging
from ml_collections import ConfigDict
from rich.table import Table

from benchmarks import options
from benchmarks.timing import environment, seconds
from nanoevolve_jax.execution.measurements import Rehearsal
from nanoevolve_jax.execution.population import make_programs
from nanoevolve_jax.execution.settings import make_baseline, make_recipe, make_task
from nanoevolve_jax.execution.train import Candidate
from nanoevolve_jax.terminal.console import Console

_LANES = 2
_SEGMENTS = 4
FLAGS = {
    "default": "",
    "deterministic ops": "--xla_gpu_deterministic_ops=true",
    "no nondeterministic ops, autotuning kept": "--xla_gpu_exclude_nondeterministic_ops=true "
    "--xla_gpu_per_fusion_autotune_cache_dir={cache}",
}


def digest(tree: Any) -> str:
    """Returns a hash of all arrays of a tree, 16 hexadecimal digits."""
    hashed = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(tree)):
        hashed.update(np.ascontiguousarray(leaf).tobytes())
    return hashed.hexdigest()[:16]


def train(config: ConfigDict, steps: int) -> dict[str, Any]:
    """Trains twice from the start in this process.

    Args:
      config: Full configuration.
      steps: Steps per segment.

    Returns:
      Dict with the `digests` of both final states, and `step_ms`, the median time in milliseconds
      per step and lane of the second training, which is warm.
    """
    logging.set_verbosity(logging.WARNING)
    if jax.devices()[0].platform == "cpu":
        options.suit_cpu(config)
    task = make_task(config)
    programs = make_programs(task, devices=1, lanes=_LANES)
    candidate = Candidate(make_baseline(config), make_recipe(config))
    digests, times = [], []
    for _ in range(2):
        rehearsal = Rehearsal(task, programs, candidate, steps, rows=1)
        times = [seconds(rehearsal.segment) for _ in range(_SEGMENTS)]
        digests.append(digest(rehearsal.state))
    return {"digests": digests, "step_ms": 1e3 * float(np.median(times)) / steps / _LANES}


def in_fresh_process(config: ConfigDict, steps: int, flags: str) -> dict[str, Any]:
    """Returns the result of `train` in a new process with additional XLA flags.

    Args:
      config: Full configuration.
      steps: Steps per segment.
      flags: XLA flags, separated by spaces.
    """
    own = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{own} {flags}".strip()
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(train, config, steps).result()
    finally:
        os.environ["XLA_FLAGS"] = own


def measure(config: ConfigDict, steps: int) -> dict[str, dict[str, Any]]:
    """Measures whether states agree under each set of flags, and the relative time of each set.

    Args:
      config: Full configuration.
      steps: Steps per segment.
    """
    runs: dict[str, list[dict]] = {name: [] for name in FLAGS}
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(2):
            for name, flags in FLAGS.items():
                runs[name].append(in_fresh_process(config, steps, flags.format(cache=cache)))

    def least(name):
        return min(run["step_ms"] for run in runs[name])

    return {
        name: {
            "flags": FLAGS[name],
            "same_in_one_process": all(len(set(run["digests"])) == 1 for run in pair),
            "same_in_two_processes": pair[0]["digests"] == pair[1]["digests"],
            "step_ms": least(name),
            "to_default": least(name) / least("default"),
        }
        for name, pair in runs.items()
    }


def show(console: Console, results: dict[str, dict]) -> None:
    """Prints one line per set of flags."""
    table = Table(title="The same run again, under flags of XLA")
    for column in ("", "flags", "one process", "two processes", "ms per step", "to default"):
        table.add_column(column, overflow="fold")
    for variant, rows in results.items():
        for name, row in rows.items():
            table.add_row(
                f":{variant}, {name}",
                row["flags"],
                "same" if row["same_in_one_process"] else "differs",
                "same" if row["same_in_two_processes"] else "differs",
                f"{row['step_ms']:.2f}",
                f"{row['to_default']:.2f}",
            )
    console.print(table)


def main(argv: Sequence[str]) -> None:
    """Measures all sizes and writes the results."""
    del argv
    logging.set_verbosity(logging.WARNING)
    results = {
        # This process must not use the device yet, because JAX would reserve a GPU's memory.
        variant: measure(config, options.steps(variant, on_cpu=False))
        for variant, config in options.configs(on_cpu=False).items()
    }
    show(Console(width=120), results)
    options.write(environment("benchmarks.repeat") | {"results": results})


if __name__ == "__main__":
    app.run(main)
