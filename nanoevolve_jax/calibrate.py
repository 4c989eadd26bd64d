"""Measures the noise, tunes the baseline and tests the evaluator.

  python -m nanoevolve_jax.calibrate --config=configs/screen.py --config.workdir=runs/calibration

Writes `calibration.json` for `--config.calibration`. Running it again goes on where it stopped.
"""

import contextlib
import time
from pathlib import Path

from ml_collections import ConfigDict

from nanoevolve_jax import command
from nanoevolve_jax.evidence.calibration import measure, planned_calls, tune_recipe
from nanoevolve_jax.evidence.calibration_file import (
    FILE,
    KIND,
    UNCALIBRATED,
    evaluation_facts,
    fingerprint,
)
from nanoevolve_jax.evidence.runs import Runs
from nanoevolve_jax.evidence.sealed import write_sealed
from nanoevolve_jax.evidence.work import MAIN, total_runs, total_steps
from nanoevolve_jax.evolution.campaign import generation_sizes
from nanoevolve_jax.evolution.promotion import planned_runs
from nanoevolve_jax.evolution.run_folder import describe_run, require_free
from nanoevolve_jax.execution.settings import ConfigError
from nanoevolve_jax.planning import print_plan
from nanoevolve_jax.prepare import opened, require_room
from nanoevolve_jax.site import open_site
from nanoevolve_jax.terminal.console import Console
from nanoevolve_jax.terminal.display import Display
from nanoevolve_jax.tracking.log import opened_log, require_installed


def calibrate(config: ConfigDict) -> None:
    """The command."""
    started = time.monotonic()
    if config.calibration != UNCALIBRATED:
        raise ConfigError(
            f"config.calibration is {config.calibration!r}; allowed: none, for a calibration "
            "begins with the config's own recipe"
        )
    console = Console()
    if config.plan:
        return print_plan(config, console)
    longest = max(2 * config.train.steps, config.confirm.steps)
    most = max(generation_sizes(config))
    require_free(Path(config.workdir))
    require_installed(config)
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(open_site(config, console, steps=longest, most=most))
        config = site.config
        folder = Path(config.workdir)
        description = describe_run(config, site.facts, UNCALIBRATED)
        checkpoints = stack.enter_context(opened(config, description, console.print_line))
        log = stack.enter_context(opened_log(config, description["fingerprints"], console))
        engine = site.engine(config, MAIN, checkpoints)
        budget = config.calibrate.tuning_runs or planned_runs(config)
        facts = evaluation_facts(config, site.facts)
        planned = planned_calls(config, budget, site.facts.width)
        require_room(folder, engine, config, total_runs(planned))
        with Display(
            console,
            total_steps=total_steps(planned),
            batch_tokens=engine.task.batch_tokens,
            task="calibrate",
        ) as display:
            runs = Runs(
                folder,
                {MAIN: lambda: engine},
                display.on_progress,
                display.log,
                on_event=(display.on_run, log.run),
            )
            display.already_done(runs.known_steps())
            tuning = tune_recipe(config, runs, budget, display.log, display.expect_more)
            display.log(f"the recipe is now '{tuning['chosen']}': {tuning['recipe']}")
            measured = measure(config, runs, tuning["recipe"], display.log)
        write_sealed(
            folder / FILE,
            KIND,
            {
                "evaluation": facts,
                "fingerprint": fingerprint(facts),
                "recipe": tuning.pop("recipe"),
                "tuning": tuning,
                **measured,
                "spent": runs.spent(),
                "versions": description["versions"],
                "device": description["device"],
                "config": config.to_dict(),
            },
        )
    console.print_line(
        f"{folder / FILE}: for --config.calibration ({time.monotonic() - started:.0f} s)"
    )


OFTEN = (
    *("workdir", "data.corpus", "train.steps", "calibrate.seeds", "calibrate.tuning_runs"),
    *("calibrate.panel_seeds", "plan"),
)

if __name__ == "__main__":
    command.run(calibrate, often=OFTEN)
