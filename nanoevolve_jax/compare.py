"""Trains given specs on the same seeds and prints the gain of each over the first.

  python -m nanoevolve_jax.compare nanochat annealing mine.json runs/mine:g002c06

A spec is a preset, a JSON file or a candidate of a run folder. Runs are kept in the folder
`compare` of `--config.workdir`, separate from any search there, and are reused by later
comparisons. The comparison is exploratory. It uses neither the seeds nor the text of promotion and
confirmation.
"""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from nanoevolve_jax import command, plugins
from nanoevolve_jax.errors import must
from nanoevolve_jax.evidence.comparison import Bench, explore
from nanoevolve_jax.evidence.sealed import write_sealed
from nanoevolve_jax.execution.json_files import finite_or_null
from nanoevolve_jax.execution.settings import ConfigError
from nanoevolve_jax.open_run import open_run
from nanoevolve_jax.reporting.policies import distinct_arms
from nanoevolve_jax.terminal.console import Console
from nanoevolve_jax.terminal.pages import comparison_page, show

FOLDER = "compare"  # subfolder of the run folder
FILE = "comparison.json"  # file name of the latest comparison
KIND = "comparison"
_ORIGIN = ("config", "versions", "device", "fingerprints")


def compare(config: ConfigDict, names: Sequence[str]) -> None:
    """Trains the named specs, prints their comparison and writes `comparison.json`.

    Args:
      config: Full configuration.
      names: Presets, paths of JSON files, or candidates in the form `FOLDER:ID`.

    Raises:
      UserError: If the config, a name or the run folder cannot be used.
    """
    if config.plan:
        rule = "be False, because a comparison has no stages"
        raise ConfigError(must("config.plan", rule, config.plan))
    arms, _ = distinct_arms(config, names)  # reports an invalid name before the text is read
    plugins.require_validated([arm.code for arm in arms], config.codegen.isolation)
    console, config = Console(), config.copy_and_resolve_references()
    config.workdir = str(Path(config.workdir) / FOLDER)
    steps, seeds = config.train.steps, config.compare.seeds
    most = len(arms) * seeds
    with open_run(config, console, "compare", steps=steps, most=most, tracked=False) as run:
        arms, same = distinct_arms(run.config, names)  # on the calibrated baseline
        total = len(arms) * seeds
        run.require_room(total)
        run.display.expect(total * steps)
        results = explore(Bench(run.config, run.runs()), arms) | {"same": same}
        origin = {name: run.description[name] for name in _ORIGIN}
        document = finite_or_null(results | {"exploratory": True} | origin)
        write_sealed(run.folder / FILE, KIND, document)
    show(comparison_page(results), console)
    path = run.folder / FILE
    console.print_line(f"{path}: this comparison, until the next one in this folder")


if __name__ == "__main__":
    often = ("workdir", "seed", "data.corpus", "train.steps", "compare.seeds", "calibration")
    command.run(compare, arguments=True, often=often)
