"""Lists the providers of code, with the costs and gains of each.

python -m nanoevolve_jax.codegen.ensemble             profiles, and missing requirements
python -m nanoevolve_jax.codegen.ensemble runs/mine   also costs and gains in a run

For a run folder, the profiles come from the file that its config names.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypedDict

from absl import flags
from rich import box
from rich.table import Table

from nanoevolve_jax import command
from nanoevolve_jax.codegen.errors import CodegenError
from nanoevolve_jax.codegen.mutators import bandit, budget, calls
from nanoevolve_jax.codegen.mutators.providers import FILE, Provider, load, missing
from nanoevolve_jax.errors import must
from nanoevolve_jax.evolution import proposals
from nanoevolve_jax.evolution.run_folder import read_description
from nanoevolve_jax.execution.json_files import typed
from nanoevolve_jax.terminal import pages
from nanoevolve_jax.terminal.console import Console, plain


class _Settings(TypedDict):
    providers: str
    ensemble: str


def settings_of(folder: Path | None) -> tuple[str, list[str] | None]:
    """Returns the file with a campaign's profiles and the names in its ensemble.

    Args:
      folder: Run folder, or None for the default settings.

    Returns:
      Path of the file with the profiles, and the names in the ensemble. The names are None if the
      folder has no config; every profile may then be chosen.

    Raises:
      CodegenError: If `config.json` in the folder is damaged.
    """
    path = folder and folder / "config.json"
    if path is None or not path.exists():
        return FILE, None
    try:
        config = read_description(folder)["config"].get("codegen")
        own = typed(config, _Settings, "config.codegen")
    except (OSError, ValueError) as error:
        raise CodegenError(f"{path} is damaged: {error}") from None
    return own["providers"], [name.strip() for name in own["ensemble"].split(",")]


def page_of(
    profiles: Mapping[str, Provider], folder: Path | None, names: Collection[str] | None
) -> pages.Page:
    """Returns a table of the providers, in the order of their file, with notes below it.

    Args:
      profiles: Profiles by name.
      folder: Run folder whose costs and gains are shown, or None.
      names: Names that may be chosen, or None if all may be.

    Raises:
      CodegenError: If a stored call in the folder is damaged.
      ArchiveError: If the journal of proposals is damaged.
    """
    answers = calls.answers_of(folder) if folder else []
    entries = proposals.read(folder / proposals.FILE) if folder else []
    history = bandit.history_of(entries)
    lacks = {name: missing(provider) for name, provider in profiles.items()}
    able = [n for n, lack in lacks.items() if lack is None and (names is None or n in names)]
    chances = bandit.chances(able, history) if able else {}
    resting = bandit.set_aside(history)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for heading in ("provider", "state"):
        table.add_column(heading)
    for heading in ("answers", "failed", "tokens", "dollars", "gain/$", "chance"):
        table.add_column(heading, justify="right")
    for name, lack in lacks.items():
        own = [answer for answer in answers if answer.provider == name]
        ended = [outcome for outcome in history if outcome.provider == name]
        gain = sum(max(outcome.gain, 0.0) for outcome in ended)
        spent = calls.cost_of(own)
        table.add_row(
            plain(name),
            plain("set aside" if name in resting else "missing" if lack else "ready"),
            f"{len(own):,}",
            f"{sum(answer.failure is not None for answer in own):,}",
            f"{spent.tokens:,}",
            f"{spent.dollars:.4f}",
            f"{gain / sum(map(bandit.cost, ended)):.4f}" if ended else "",
            f"{chances.get(name, 0.0):.0%}",
        )
    notes = [f"{name}: {lack}" for name, lack in lacks.items() if lack]
    if folder:
        notes.append(f"Spent: {budget.describe(calls.cost_of(answers))}")
        lost = calls.lost_cost(folder)
        if lost.calls:
            notes.append(f"Under way or lost, at worst: {budget.describe(lost)}")
    return [table, *([plain()] if notes else []), *map(plain, notes)]


def main(arguments: list[str]) -> None:
    """Shows the table of providers.

    Args:
      arguments: Command-line arguments: at most one run folder.
    """
    if len(arguments) > 1:
        command.fail(must("the arguments", "be nothing or a run folder", " ".join(arguments)))
    folder = Path(arguments[0]) if arguments else None
    if folder is not None and not (folder / proposals.FOLDER).is_dir():
        command.fail(must("DIR", "be a run folder with proposals", str(folder)))
    file, names = settings_of(folder)
    pages.show(page_of(load(flags.FLAGS.providers or file), folder, names), Console())


if __name__ == "__main__":
    flags.DEFINE_string("providers", None, f"TOML file of profiles; the run's own, or else {FILE}")
    command.run_on_arguments(main, only_prints=True)
