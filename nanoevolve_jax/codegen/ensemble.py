"""Lists the providers that can be asked for code, and what each was worth.

python -m nanoevolve_jax.codegen.ensemble             the profiles, and what they lack
python -m nanoevolve_jax.codegen.ensemble runs/mine   and what each did in a run
"""

from pathlib import Path

from absl import flags

from nanoevolve_jax import command
from nanoevolve_jax.codegen.campaign.books import FOLDER
from nanoevolve_jax.codegen.mutators import ensemble_page
from nanoevolve_jax.codegen.mutators.providers import FILE, load


def main(arguments: list[str]) -> None:
    """The command."""
    if len(arguments) > 1:
        command.fail(f"arguments are {' '.join(arguments)!r}; allowed: nothing, or a run folder")
    directory = Path(arguments[0]) if arguments else None
    if directory is not None and not (directory / FOLDER).is_dir():
        command.fail(f"DIR is {str(directory)!r}; allowed: a run folder with proposals")
    print(ensemble_page.render(load(flags.FLAGS.providers), directory), end="")


if __name__ == "__main__":
    flags.DEFINE_string("providers", FILE, "TOML file of profiles")
    command.run_on_arguments(main)
