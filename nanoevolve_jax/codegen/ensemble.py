"""Lists the providers that can be asked for code, and what each was worth.

python -m nanoevolve_jax.codegen.ensemble             the profiles, and what they lack
python -m nanoevolve_jax.codegen.ensemble runs/mine   and what each did in a run

The profiles are those of the run's own file, if it has one.
"""

from pathlib import Path
from typing import TypedDict

from absl import flags

from nanoevolve_jax import command
from nanoevolve_jax.codegen.errors import CodegenError
from nanoevolve_jax.codegen.mutators import ensemble_page
from nanoevolve_jax.codegen.mutators.providers import FILE, load
from nanoevolve_jax.evolution.proposals import FOLDER
from nanoevolve_jax.evolution.run_folder import read_description
from nanoevolve_jax.execution.json_files import typed
from nanoevolve_jax.terminal import pages
from nanoevolve_jax.terminal.console import Console


class _Own(TypedDict):
    providers: str
    ensemble: str


def settings_of(directory: Path | None) -> tuple[str, list[str] | None]:
    """The file of the profiles that a campaign asks, and their names; None: it is no campaign's.

    Raises:
      CodegenError: if its `config.json` is damaged.
    """
    path = directory and directory / "config.json"
    if path is None or not path.exists():
        return FILE, None
    try:
        own = typed(read_description(directory)["config"].get("codegen"), _Own, "config.codegen")
    except (OSError, ValueError) as error:
        raise CodegenError(f"{path} is damaged: {error}") from None
    return own["providers"], [name.strip() for name in own["ensemble"].split(",")]


def main(arguments: list[str]) -> None:
    """The command."""
    if len(arguments) > 1:
        command.fail(f"arguments are {' '.join(arguments)!r}; allowed: nothing, or a run folder")
    directory = Path(arguments[0]) if arguments else None
    if directory is not None and not (directory / FOLDER).is_dir():
        command.fail(f"DIR is {str(directory)!r}; allowed: a run folder with proposals")
    file, asked = settings_of(directory)
    profiles = load(flags.FLAGS.providers or file)
    pages.show(ensemble_page.page(profiles, directory, asked), Console())


if __name__ == "__main__":
    flags.DEFINE_string("providers", None, f"TOML file of profiles; the run's own, or else {FILE}")
    command.run_on_arguments(main, only_prints=True)
