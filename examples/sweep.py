r"""Runs one search for every combination of values, each in its own run folder.

Each `--over` names a field and its values. Arguments after `--` are passed to every search.

  python examples/sweep.py --over=seed=0,1 --over=recipe.matrix_lr=0.9,1.8 -- \
      --config.train.steps=20 --config.search.generations=1 --config.search.population=4

These four searches take 200 s on 2 busy cores, including the preparation of the text and
compilation. The output ends with

  search                         baseline bpb   best bpb   change    best
  seed=0,recipe.matrix_lr=1.8    2.6758         2.6753     -0.0005   g001c03
  seed=1,recipe.matrix_lr=1.8    2.6849         2.6844     -0.0005   g001c03
  seed=1,recipe.matrix_lr=0.9    2.7137         2.7105     -0.0032   g001c01
  seed=0,recipe.matrix_lr=0.9    2.7788         2.7726     -0.0062   g001c01

The run folders in `runs/sweep` are named after their values. The same command continues a sweep.
All searches share `cache`, so only the first search packs text and compiles. Such a table mostly
shows the effect of the baseline's learning rate. Use `calibrate` to measure the noise.
"""

import itertools
import subprocess
import sys
from pathlib import Path

from absl import app, flags
from rich.table import Table

from nanoevolve_jax.reporting.history import read_history
from nanoevolve_jax.terminal.console import Console

_FOLDER = flags.DEFINE_string("folder", "runs/sweep", "folder of the run folders")
_OVER = flags.DEFINE_multi_string("over", ["seed=0,1"], "FIELD=VALUE,VALUE,...")


def combinations(over: list[str]) -> list[dict[str, str]]:
    """Returns all combinations with one value per field.

    Args:
      over: Fields and their values in the form `FIELD=VALUE,VALUE,...`.
    """
    fields, values = zip(*(text.split("=", 1) for text in over), strict=True)
    choices = itertools.product(*(text.split(",") for text in values))
    return [dict(zip(fields, choice, strict=True)) for choice in choices]


def compare(folders: list[Path]) -> Table:
    """Returns a table with one row per search, sorted by the best validation bpb.

    Args:
      folders: Run folders of the searches.
    """
    histories = sorted(map(read_history, folders), key=lambda h: h.best.merit.val_bpb)
    table = Table("search", "baseline bpb", "best bpb", "change", "best", title="Sweep")
    for history in histories:
        before, after = (record.merit.val_bpb for record in (history.baseline, history.best))
        change = f"{after - before:+.4f}"
        row = (history.folder.name, f"{before:.4f}", f"{after:.4f}", change, history.best.id)
        table.add_row(*row)
    return table


def main(arguments: list[str]) -> int:
    """Runs all searches in turn, prints a table and returns the exit code."""
    folders = []
    for values in combinations(_OVER.value):
        name = ",".join(f"{field}={value}" for field, value in values.items())
        folders.append(Path(_FOLDER.value) / name)
        search = [sys.executable, "-m", "nanoevolve_jax", "search", "--config=configs/screen.py"]
        search += [f"--config.{field}={value}" for field, value in values.items()]
        search += [f"--config.workdir={folders[-1]}", *arguments[1:]]
        print(name, flush=True)
        if code := subprocess.run(search, stdout=subprocess.DEVNULL).returncode:
            return code
    Console().print(compare(folders))
    return 0


if __name__ == "__main__":
    app.run(main)
