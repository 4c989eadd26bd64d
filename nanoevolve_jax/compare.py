"""Trains given specs side by side on the same seeds, and prints what each gains over the first.

  python -m nanoevolve_jax.compare nanochat annealing mine.json runs/mine:g002c06

A spec is a preset, a JSON file, or a candidate of a run folder. What it makes lies in the folder
`compare` of `--config.workdir`, apart from a search that is there; runs that are known are not made
again. It explores: it uses neither the seeds nor the text of promotion and confirmation.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from nanoevolve_jax import command, plugins
from nanoevolve_jax.evidence.calibration_file import UNCALIBRATED
from nanoevolve_jax.evidence.comparison import Arm, Bench, explore, planned_exploration
from nanoevolve_jax.evidence.runs import Runs
from nanoevolve_jax.evidence.sealed import write_sealed
from nanoevolve_jax.evidence.work import MAIN, total_runs, total_steps
from nanoevolve_jax.evolution.run_folder import describe_run, require_free
from nanoevolve_jax.execution.cost import matrix_shapes
from nanoevolve_jax.execution.json_files import finite_or_null
from nanoevolve_jax.execution.settings import ConfigError, make_baseline, make_task
from nanoevolve_jax.policy.spec_json import SpecError
from nanoevolve_jax.prepare import calibrated, opened, require_room
from nanoevolve_jax.reporting.policies import named_arm, same_policy
from nanoevolve_jax.site import open_site
from nanoevolve_jax.terminal.console import Console
from nanoevolve_jax.terminal.display import Display
from nanoevolve_jax.terminal.pages import comparison_page, show

FOLDER = "compare"  # of a work folder
FILE = "comparison.json"  # of the latest comparison
KIND = "comparison"
_ORIGIN = ("config", "versions", "device", "fingerprints")


def compare(config: ConfigDict, names: Sequence[str]) -> None:
    """The command."""
    if config.plan:
        raise ConfigError("config.plan is True; allowed: False, for a comparison has no stages")
    arms, _ = distinct(config, names)  # a mistake is named before text is read
    plugins.require_validated([arm.code for arm in arms], config.codegen.isolation)
    console = Console()
    config = config.copy_and_resolve_references()
    config.workdir = str(Path(config.workdir) / FOLDER)
    most = total_runs(planned_exploration(config, len(arms)))
    require_free(Path(config.workdir))
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(open_site(config, console, steps=config.train.steps, most=most))
        config, calibration = calibrated(site.config, site.facts)
        arms, same = distinct(config, names)  # presets stand on the calibrated baseline
        planned = planned_exploration(config, len(arms))
        folder = Path(config.workdir)
        seal = calibration.seal if calibration else UNCALIBRATED
        description = describe_run(config, site.facts, seal)
        checkpoints = stack.enter_context(opened(config, description, console.print_line))
        engine = site.engine(config, MAIN, checkpoints)
        require_room(folder, engine, config, total_runs(planned))
        with Display(
            console,
            total_steps=total_steps(planned),
            batch_tokens=engine.task.batch_tokens,
            task="compare",
        ) as display:
            runs = Runs(folder, {MAIN: lambda: engine}, display.on_progress, display.log)
            found = explore(Bench(config, runs), arms) | {"same": same}
        origin = {name: description[name] for name in _ORIGIN}
        write_sealed(folder / FILE, KIND, finite_or_null(found | {"exploratory": True} | origin))
    show(comparison_page(found), console)
    console.print_line(f"{folder / FILE}: this comparison, until the next one in this folder")


def distinct(config: ConfigDict, names: Sequence[str]) -> tuple[list[Arm], list[dict[str, str]]]:
    """The policies of these names, each once, and who is the same as whom.

    Raises:
      SpecError: if a name cannot be used, or there are not two different policies.
      CertificateError: if the code of one is not for the matrices of the config's model.
    """
    baseline, matrices = make_baseline(config), matrix_shapes(make_task(config).model)
    arms: list[Arm] = []
    same: list[dict[str, str]] = []
    for name in names:
        arm = named_arm(name, baseline)
        if arm.code:
            arm.code.require(matrices)
        twin = next((known for known in arms if same_policy(known, arm)), None)
        if twin is None:
            arms.append(arm)
        else:
            same.append({"id": name, "same_as": twin.id})
    if len(names) < 2:
        raise SpecError(
            f"specs are {len(names)}; allowed: two or more, each a preset, a JSON file or DIR:ID"
        )
    if len(arms) < 2:
        raise SpecError(
            f"specs are {' '.join(names)!r}, all the same policy; allowed: some that differ in "
            "what they do"
        )
    return arms, same


if __name__ == "__main__":
    often = ("workdir", "seed", "data.corpus", "train.steps", "compare.seeds", "calibration")
    command.run(compare, arguments=True, often=often)
