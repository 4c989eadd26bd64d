"""The flags that benchmarks share, defined once so that tests can import several together."""

import json
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict
from nanoevolve_jax.configs import screen
from nanoevolve_jax.configs.base import SETTINGS

CACHE = flags.DEFINE_string("cache", "cache", "folder of packed rows")
_OUT = flags.DEFINE_string("out", "", "JSON file to write")
_ROUNDS = flags.DEFINE_integer("rounds", 0, "interleaved repeats; 0: the benchmark's own", 0)
_VARIANTS = flags.DEFINE_list("variants", ["cpu"], "sizes of configs/screen.py")
_STEPS = flags.DEFINE_integer("steps", 0, "of a run; 0: 10, on a CPU 1 for all but :cpu", 0)
_BATCH = flags.DEFINE_integer("batch_size", 0, "rows a step; 0: the config's own", 0)
_SET = flags.DEFINE_multi_string("set", [], "fields to change: search.generations=1,train.steps=4")
_SECONDS = flags.DEFINE_float("seconds", 300.0, "most seconds that a cell may take", 0.0)

_EFFICIENCY = 0.4  # of the peak, to tell beforehand how long a cell takes


def write(document: dict[str, Any]) -> None:
    """Writes the document to `--out`, if it was given; again, when there is more of it."""
    if _OUT.value:
        path = Path(_OUT.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2) + "\n")


def rounds(default: int) -> int:
    """`--rounds`, or the benchmark's own."""
    return _ROUNDS.value or default


def steps(variant: str, on_cpu: bool) -> int:
    """`--steps`, or as many as the device gets through."""
    return _STEPS.value or (1 if on_cpu and variant != "cpu" else 10)


def configs(on_cpu: bool) -> dict[str, ConfigDict]:
    """The screening configs of `--variants`, in what the device can run.

    A CPU has neither cuDNN nor fast bfloat16: XLA's attention in float32 stands in.
    """
    found = {}
    for variant in _VARIANTS.value:
        if variant not in screen.VARIANTS:
            names = ", ".join(screen.VARIANTS)
            raise app.UsageError(f"--variants is {variant!r}; allowed: {names}")
        config = found[variant] = screen.get_config(variant)
        config.train.batch_size = _BATCH.value or config.train.batch_size
        for change in (one for some in _SET.value for one in some.split(",")):
            path, _, value = change.partition("=")
            if path not in SETTINGS:
                raise app.UsageError(f"--set is {change!r}; allowed: FIELD=VALUE, as in the README")
            config.update_from_flattened_dict({path: type(SETTINGS[path].default)(value)})
        if on_cpu:
            suit_cpu(config)
    return found


def suit_cpu(config: ConfigDict) -> None:
    """Puts what a CPU has in the place of what it has not."""
    config.model.dtype, config.model.attention = "float32", "xla"


def too_long(flops: float, peak: float) -> str | None:
    """Why a cell is left out, if it is.

    Args:
      flops: of the cell, warming included.
      peak: FLOPs a second of the device.
    """
    needed = flops / (_EFFICIENCY * peak)
    if needed <= _SECONDS.value:
        return None
    return f"left out: about {needed:,.0f} s, above --seconds={_SECONDS.value:g}"
