"""Exports a policy as a file that does not need this project, and checks that it agrees.

  python -m nanoevolve_jax.export g002c06 --to optax --workdir=runs/mine
  python -m nanoevolve_jax.export annealing --to torch --out annealing.py

The argument is an id of the run folder, a preset, or a JSON file with a spec or a record. Files for
optax and JSON include the sources of rewritten functions.
"""

from pathlib import Path

from absl import flags

from nanoevolve_jax import command, plugins
from nanoevolve_jax.exports.forms import FORMS, export
from nanoevolve_jax.reporting.policies import find_policy
from nanoevolve_jax.terminal import streams

DISAGREES = 1


def main(arguments: list[str]) -> int:
    """Runs the command and returns its exit code."""
    if len(arguments) != 1:
        command.fail(f"export needs one ID, preset or JSON file, got {len(arguments)} arguments")
    given = flags.FLAGS
    policy = find_policy(arguments[0], Path(given.workdir))
    plugins.require_exportable(policy.code)
    check = plugins.export_check(policy.code, given.isolation)
    exported = export(policy, given.to, check, Path(given.out) if given.out else None, given.force)
    streams.print_line(exported.summary)
    return 0 if exported.agrees else DISAGREES


if __name__ == "__main__":  # modules that import this one may define flags of the same names
    flags.DEFINE_enum("to", None, list(FORMS), "form of the file")
    flags.DEFINE_string("workdir", "runs/screen", "run folder whose archive has the id")
    flags.DEFINE_string("out", None, "file to write; by default, the id in the current folder")
    flags.DEFINE_bool("force", False, "overwrite a file that exists")
    flags.DEFINE_enum(
        *("isolation", plugins.REQUIRED, [plugins.REQUIRED, plugins.AVAILABLE]),
        "walls of the sandbox that tries rewritten functions; available: those of this machine",
    )
    command.run_on_arguments(main)
