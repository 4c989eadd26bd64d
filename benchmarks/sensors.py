"""Measures whether sensor ranges are the same at other model sizes, horizons and batch sizes.

  python -m benchmarks.sensors --out=results/sensors.json

The baseline trains on real text at a base size and with the width, depth, horizon or batch size
doubled, on two seeds each. The benchmark compares the 5-95 % range of each sensor on the scale of
the gate, where 1 is saturation. The start of a run is compared separately. There the loss falls
from that of a uniform guess, which takes a fixed number of tokens rather than a fraction of the
run, so sensors cannot transfer. This affects the alignment of gradients most. The benchmark also
prints raw ranges, which are needed for the normalisers, and ranges at other batch sizes, which show
whether the alignment needs a correction for the batch size.
"""

import platform
from collections.abc import Sequence

import jax
import numpy as np
from absl import app, logging
from rich.table import Table

from benchmarks import options
from benchmarks.recipe import RECIPE
from nanoevolve_jax.configs.screen import get_config
from nanoevolve_jax.data.rows import build_rows
from nanoevolve_jax.execution.job import Job
from nanoevolve_jax.execution.machine import visible_cores
from nanoevolve_jax.execution.settings import make_recipe
from nanoevolve_jax.execution.train import TELEMETRY, Candidate
from nanoevolve_jax.policy.spec import NANOCHAT, Sensors
from nanoevolve_jax.site import make_engine
from nanoevolve_jax.terminal.console import Console

START = 0.15  # end of the start of a run, which is compared separately, as a fraction of the run
SKIP = 0.05  # fraction of the run that is left out, because moving averages have too few steps

VARIANTS = {
    "base": {},
    "width x2": {"model.n_embd": 128, "model.n_head": 4, "model.n_kv_head": 4},
    "depth x2": {"model.n_layer": 8},
    "horizon x2": {"train.steps": 400},
    "batch x2": {"train.batch_size": 16},
}
OTHER_BATCHES = {"batch / 2": {"train.batch_size": 4}, "batch x4": {"train.batch_size": 32}}


def base_config():
    """Returns the config of the base size, which is the `:cpu` model at 200 steps."""
    config = get_config()
    config.update_from_flattened_dict(RECIPE)
    config.train.steps = 200
    config.train.segment_steps = 50
    config.train.evaluations = 1
    config.data.validation_rows = 16
    return config


def measure(changes: dict, cache: str, seeds: Sequence[int] = (0, 1)) -> np.ndarray:
    """Trains the baseline and returns its telemetry, float32[seeds, steps, columns].

    Args:
      changes: Values that differ from the base size, by dotted path.
      cache: Folder of packed rows.
      seeds: Seeds of the runs.
    """
    config = base_config()
    config.update_from_flattened_dict(changes)
    rows = build_rows(
        config.data.corpus,
        vocab_size=config.data.vocab_size,
        sequence_len=config.model.sequence_len,
        cache_dir=cache,
    )
    engine = make_engine(config, rows, min(len(seeds), len(jax.devices())))
    jobs = [
        Job(Candidate(NANOCHAT, make_recipe(config)), seed, config.train.steps) for seed in seeds
    ]
    return np.stack([result.telemetry for result in engine.run(jobs)])


def ranges_of(telemetry: np.ndarray, start: float = START, end: float = 1.0) -> dict:
    """Returns the 5th and 95th percentiles of each sensor over all seeds and a part of the run.

    Args:
      telemetry: Telemetry, float32[seeds, steps, columns].
      start: Start of the part as a fraction of the run.
      end: End of the part as a fraction of the run.
    """
    steps = telemetry.shape[1]
    part = telemetry[:, int(start * steps) : int(end * steps)]
    return {
        name: np.percentile(part[..., TELEMETRY.index(name)], [5, 95]).tolist()
        for name in Sensors._fields
    }


def shift(base: list[float], other: list[float]) -> float:
    """Returns the larger of the distances between the ends of two ranges, where 1 is saturation."""
    return max(abs(a - b) for a, b in zip(base, other, strict=True))


def raw_ends(name: str, ends: list[float]) -> list[float]:
    """Returns the range of a sensor before normalisation and tanh.

    Args:
      name: Name of the sensor.
      ends: Ends of the range on the scale of the gate.
    """
    if name == "step_fraction":
        return ends
    normaliser = getattr(NANOCHAT.control.normalisers, name)
    return [float(np.arctanh(np.clip(x, -0.999999, 0.999999)) * normaliser) for x in ends]


def main(argv: Sequence[str]) -> None:
    """Measures all sizes, prints both parts of the run and writes the results."""
    del argv
    logging.set_verbosity(logging.WARNING)
    jax.config.update("jax_num_cpu_devices", visible_cores())
    console = Console(width=150)
    ranges, starts = {}, {}
    for name, changes in (VARIANTS | OTHER_BATCHES).items():
        telemetry = measure(changes, options.CACHE.value)
        ranges[name] = ranges_of(telemetry)
        starts[name] = ranges_of(telemetry, SKIP, START)
        console.print(f"{name}: done", highlight=False)
    show(console, ranges, f"from {START:.0%} of the run on")
    show(console, starts, f"from {SKIP:.0%} to {START:.0%} of the run")
    options.write(
        {
            "command": "python -m benchmarks.sensors",
            "machine": f"{platform.machine()}, {visible_cores()} cores",
            "jax": jax.__version__,
            "normalisers": NANOCHAT.control.normalisers._asdict(),
            "ranges": ranges,
            "ranges_at_the_start": starts,
            "raw_base": {name: raw_ends(name, ends) for name, ends in ranges["base"].items()},
        }
    )


def show(console: Console, ranges: dict, part: str) -> None:
    """Prints each range and its distance from the range at the base size.

    Args:
      console: Console that prints the table.
      ranges: Range of each sensor by size.
      part: Phrase that names the part of the run.
    """
    table = Table(title=f"5-95 % range of each sensor under the baseline {part} (ends move by)")
    table.add_column("sensor")
    table.add_column("raw, base")
    for name in ranges:
        table.add_column(name)
    for sensor in Sensors._fields:
        raw = raw_ends(sensor, ranges["base"][sensor])
        cells = ["{:+.2f}..{:+.2f}".format(*raw)]
        for name in ranges:
            ends = ranges[name][sensor]
            cells.append(
                "{:+.2f}..{:+.2f} ({:.0%})".format(*ends, shift(ranges["base"][sensor], ends))
            )
        table.add_row(sensor, *cells)
    console.print(table)


if __name__ == "__main__":
    app.run(main)
