"""Writes the report of a search: one HTML file that needs no network.

python -m nanoevolve_jax.report --workdir=runs/mine
"""

from pathlib import Path

from absl import flags

from nanoevolve_jax import command
from nanoevolve_jax.errors import must
from nanoevolve_jax.reporting.page import FILE, write_report
from nanoevolve_jax.terminal.console import Console


def main(arguments: list[str]) -> None:
    """Runs the command."""
    if arguments:
        command.fail(must("argument", "be a flag, --workdir or --out", arguments[0]))
    if not flags.FLAGS.workdir:
        command.fail("--workdir is missing; give the run folder of a search")
    out = Path(flags.FLAGS.out) if flags.FLAGS.out else None
    Console().print_line(write_report(Path(flags.FLAGS.workdir), out))


if __name__ == "__main__":  # flags with such common names must not be defined on import
    flags.DEFINE_string("workdir", None, "run folder of a search, finished or in progress")
    flags.DEFINE_string("out", None, f"path of the report; by default {FILE} in the run folder")
    command.run_on_arguments(main)
