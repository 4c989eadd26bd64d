"""Shows what a search found, or one of its candidates.

  python -m nanoevolve_jax.show runs/mine                 verdict, best, front, compute
  python -m nanoevolve_jax.show runs/mine g002c06         lineage, what it does, runs, spec
  python -m nanoevolve_jax.show runs/mine --diff A B      two specs: ids, presets, JSON files

Nothing is changed, and the search may be under way.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from nanoevolve_jax import command
from nanoevolve_jax.execution.json_files import finite_or_null, to_text
from nanoevolve_jax.reporting.candidate import candidate, difference
from nanoevolve_jax.reporting.history import read_history
from nanoevolve_jax.reporting.naming import named_arm
from nanoevolve_jax.reporting.overview import overview
from nanoevolve_jax.terminal import pages, streams
from nanoevolve_jax.terminal.console import Console
from nanoevolve_jax.terminal.pages import (
    Page,
    candidate_page,
    difference_page,
    front_page,
    overview_page,
)

_DIFF = flags.DEFINE_bool("diff", False, "the fields at which two specs differ")
_FRONT = flags.DEFINE_bool("front", False, "the whole Pareto front")
_JSON = flags.DEFINE_bool("json", False, "the same as JSON")
_SPEC = flags.DEFINE_bool("spec", False, "the whole spec of a candidate")
_BEST = 5  # candidates of an overview
_USAGE = {
    "diff": "DIR --diff and two of: an id, a preset, a JSON file, DIR:ID",
    "front": "DIR --front",
    "spec": "DIR ID --spec",
    "": "DIR, or DIR ID",
}
_COUNTS = {"diff": (3,), "front": (1,), "spec": (2,), "": (1, 2)}


def shown(arguments: Sequence[str], what: str) -> tuple[dict[str, Any], Page]:
    """What is to be shown, as a document and as a page.

    Args:
      arguments: a run folder, and what the command takes after it.
      what: 'diff', 'front', 'spec' or ''.
    """
    history = read_history(Path(arguments[0]), "DIR")
    if what == "diff":
        arms = [named_arm(name, history.baseline.spec, history) for name in arguments[1:]]
        found = difference(*arms)
        return found, difference_page(found)
    if len(arguments) > 1:
        found = candidate(history, history.record(arguments[1]))
        return found, candidate_page(found, whole_spec=what == "spec")
    found = overview(history, _BEST)
    if what == "front":
        return {"front": found["front"]}, front_page(found)
    return found, overview_page(found)


def main(arguments: list[str]) -> None:
    """The command."""
    asked = {"diff": _DIFF.value, "front": _FRONT.value, "spec": _SPEC.value}
    wanted = [name for name, value in asked.items() if value] or [""]
    if len(wanted) > 1 or len(arguments) not in _COUNTS[wanted[0]]:
        given = " ".join([*arguments, *(f"--{name}" for name in wanted if name)]) or "nothing"
        command.fail(f"arguments are {given!r}; allowed: {_USAGE[wanted[0]]}")
    found, page = shown(arguments, wanted[0])
    if _JSON.value:
        streams.write(to_text(finite_or_null(found)))
    else:
        pages.show(page, Console())


if __name__ == "__main__":
    command.run_on_arguments(main, only_prints=True)
