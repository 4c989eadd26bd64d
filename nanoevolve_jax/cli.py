"""The entry point of all commands: `nanoevolve search ...` runs `nanoevolve_jax.search`.

Only the standard library is imported, so that `nanoevolve --help` is fast.
"""

import difflib
import platform
import runpy
import sys
from importlib import metadata

from nanoevolve_jax.terminal import streams

PROGRAM = "nanoevolve"
COMMANDS = {
    "search": "evolve optimizer policies and promote the best one",
    "calibrate": "measure the noise, tune the baseline, test the evaluator",
    "confirm": "test one candidate against the tuned baseline",
    "replay": "train pairs of a confirmation again and compare",
    "report": "write a run folder as one HTML page",
    "show": "print the best candidates, the front or one candidate",
    "compare": "train given specs side by side on the same seeds",
    "export": "write a policy as code for optax or torch, or as JSON",
    "codegen.autonomous": "let language models rewrite parts of the optimizer",
    "codegen.propose": "request one rewritten function from a language model",
    "codegen.validate": "validate a rewritten function in the sandbox",
    "codegen.ensemble": "list the configured models and the results of their code",
    "codegen.deploy": "train candidates as jobs of a Ray cluster",
    "codegen.trace": "follow a job and fetch its result",
    "codegen.status": "list the jobs that were sent",
}
_HELP = ("-h", "--help", "--helpshort", "--helpfull")
_BAD_INPUT = 2


def main(arguments: list[str] | None = None) -> int:
    """Runs the command that the first argument names.

    Args:
      arguments: Command line without the program's name; by default that of this process.

    Returns:
      Exit code, unless the command itself exits.
    """
    streams.guard()
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name == "help" and rest:
        name, rest = rest[0], ["--help"]
    if name in (*_HELP, "help"):
        streams.write(f"{overview()}\n")
        return 0
    if name == "--version":
        streams.print_line(version())
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS) or COMMANDS
        streams.print_error(f"error: command must be {' or '.join(near)}, got {name!r}")
        return _BAD_INPUT
    sys.argv = [f"{PROGRAM} {name}", *rest]
    runpy.run_module(f"nanoevolve_jax.{name}", run_name="__main__")
    return 0


def overview() -> str:
    """Returns the list of all commands."""
    width = max(map(len, COMMANDS))
    rows = [f"  {name:{width}}  {purpose}" for name, purpose in COMMANDS.items()]
    return "\n".join(
        [
            "Evolves optimizer policies that sense the state of training.",
            "",
            f"  {PROGRAM} COMMAND [ARGUMENTS] [--FLAG=VALUE ...]",
            "",
            *rows,
            "",
            f"{PROGRAM} help COMMAND prints more; {PROGRAM} --version prints versions.",
        ]
    )


def version() -> str:
    """Returns one line with the versions that a bug report should name."""
    return (
        f"{PROGRAM} {_installed('nanoevolve-jax')} "
        f"(jax {_installed('jax')}, Python {platform.python_version()})"
    )


def _installed(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
