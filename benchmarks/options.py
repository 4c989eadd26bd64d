"""Flags of all benchmarks, defined once so that tests can import several benchmarks together."""

import json
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict

from nanoevolve_jax.configs import screen
from nanoevolve_jax.configs.base import SETTINGS
from nanoevolve_jax.errors import must

CACHE = flags.DEFINE_string("cache", "cache", "folder of packed rows")
_OUT = flags.DEFINE_string("out", "", "JSON file to write")
_ROUNDS = flags.DEFINE_integer("rounds", 0, "repeats; 0: the default of the benchmark", 0)
_VARIANTS = flags.DEFINE_list("variants", ["cpu"], "sizes of configs/screen.py")
_STEPS = flags.DEFINE_integer("steps", 0, "steps per run; 0: 10, on a CPU 1 except for :cpu", 0)
_BATCH = flags.DEFINE_integer("batch_size", 0, "rows per step; 0: as in the config", 0)
_SET = flags.DEFINE_multi_string("set", [], "changed fields: search.generations=1,train.steps=4")
_SECONDS = flags.DEFINE_float("seconds", 300.0, "largest time of a cell in seconds", 0.0)

_EFFICIENCY = 0.4  # assumed fraction of the peak, used to predict the time of a cell


def write(document: dict[str, Any]) -> None:
    """Writes the document to the file `--out`, if given, and replaces any earlier content.

    Args:
      document: Results as JSON.
    """
    if _OUT.value:
        path = Path(_OUT.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2) + "\n")


def rounds(default: int) -> int:
    """Returns the number of repeats, which is `--rounds` or the default of the benchmark."""
    return _ROUNDS.value or default


def steps(variant: str, on_cpu: bool) -> int:
    """Returns the number of steps per run, which is `--steps` or a number that suits the device."""
    return _STEPS.value or (1 if on_cpu and variant != "cpu" else 10)


def configs(on_cpu: bool) -> dict[str, ConfigDict]:
    """Returns the screening configs of `--variants` by name, adapted to the device.

    A CPU has neither cuDNN nor fast bfloat16, so it uses XLA's attention in float32.

    Args:
      on_cpu: Whether the device is a CPU.

    Raises:
      absl.app.UsageError: If a variant or a field of `--set` does not exist.
    """
    chosen = {}
    for variant in _VARIANTS.value:
        if variant not in screen.VARIANTS:
            rule = f"be one of {', '.join(screen.VARIANTS)}"
            raise app.UsageError(must("--variants", rule, variant))
        config = chosen[variant] = screen.get_config(variant)
        config.train.batch_size = _BATCH.value or config.train.batch_size
        for change in ",".join(_SET.value).split(",") if _SET.value else ():
            path, _, value = change.partition("=")
            if path not in SETTINGS:
                raise app.UsageError(
                    must("--set", "be FIELD=VALUE with a field of the config", change)
                )
            config.update_from_flattened_dict({path: type(SETTINGS[path].default)(value)})
        if on_cpu:
            suit_cpu(config)
    return chosen


def suit_cpu(config: ConfigDict) -> None:
    """Replaces the dtype and attention that a CPU does not support."""
    config.model.dtype, config.model.attention = "float32", "xla"


def too_long(flops: float, peak: float) -> str | None:
    """Returns the reason to skip a cell, or None if its predicted time is short enough.

    Args:
      flops: FLOPs of the cell, including warm-up.
      peak: Peak of the device in FLOPs per second.
    """
    needed = flops / (_EFFICIENCY * peak)
    if needed <= _SECONDS.value:
        return None
    return f"skipped: about {needed:,.0f} s, above --seconds={_SECONDS.value:g}"
