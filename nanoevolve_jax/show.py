"""Shows the results of a search, or one of its candidates.

  python -m nanoevolve_jax.show runs/mine                 verdict, best candidates, compute
  python -m nanoevolve_jax.show runs/mine g002c06         one candidate and what it does
  python -m nanoevolve_jax.show runs/mine --diff A B      two specs: ids, presets, JSON files

The search may still be running; nothing in its folder is changed.
"""

from absl import flags

from nanoevolve_jax import command
from nanoevolve_jax.execution.json_files import finite_or_null, to_text
from nanoevolve_jax.terminal import pages, streams
from nanoevolve_jax.terminal.console import Console

_FLAGS = {
    "diff": flags.DEFINE_bool("diff", False, "show the fields in which two specs differ"),
    "front": flags.DEFINE_bool("front", False, "show the full Pareto front"),
    "spec": flags.DEFINE_bool("spec", False, "show the full spec of a candidate"),
}
_JSON = flags.DEFINE_bool("json", False, "print JSON instead of tables")


def main(arguments: list[str]) -> None:
    """Runs the command."""
    chosen = [name for name, flag in _FLAGS.items() if flag.value] or [""]
    usage, counts = pages.VIEWS[chosen[0]]
    if len(chosen) > 1 or len(arguments) not in counts:
        given = " ".join([*arguments, *(f"--{name}" for name in chosen if name)]) or "nothing"
        command.fail(f"arguments must be {usage}, got {given!r}")
    data, page = pages.view(arguments, chosen[0])
    if _JSON.value:
        streams.write(to_text(finite_or_null(data)))
    else:
        pages.show(page, Console())


if __name__ == "__main__":
    command.run_on_arguments(main, only_prints=True)
