"""Writes the report of a run folder: one HTML file that opens without a network.

python -m nanoevolve_jax.report --workdir=runs/mine
"""

from pathlib import Path

from absl import flags

from nanoevolve_jax import command
from nanoevolve_jax.reporting.page import FILE, write_report
from nanoevolve_jax.terminal.console import Console


def main(arguments: list[str]) -> None:
    """The command."""
    if arguments:
        command.fail(f"argument {arguments[0]!r} is unknown; allowed: --workdir and --out")
    given = flags.FLAGS
    if not given.workdir:
        command.fail("--workdir is missing; allowed: the folder of a search")
    out = Path(given.out) if given.out else None
    path = write_report(Path(given.workdir), out)
    Console().print_line(path)


if __name__ == "__main__":  # flags of such common names would clash in who only imports this
    flags.DEFINE_string("workdir", None, "folder of a search, finished or under way")
    flags.DEFINE_string("out", None, f"file to write; by default {FILE} in that folder")
    command.run_on_arguments(main)
