"""Measures the noise, tunes the baseline and tests the evaluator.

  python -m nanoevolve_jax.calibrate --config=configs/screen.py --config.workdir=runs/calibration

Writes `calibration.json` for `--config.calibration`. Running it again goes on where it stopped.
"""

import time
from pathlib import Path

from ml_collections import ConfigDict
from rich.console import Console

from nanoevolve_jax import command
from nanoevolve_jax.display import Display
from nanoevolve_jax.evidence.calibration import measure, planned_steps, tune_recipe
from nanoevolve_jax.evidence.calibration_file import (
    FILE,
    KIND,
    UNCALIBRATED,
    evaluation_facts,
    fingerprint,
)
from nanoevolve_jax.evidence.runs import Runs
from nanoevolve_jax.evidence.sealed import write_sealed
from nanoevolve_jax.evolution.campaign import generation_sizes, planned_runs
from nanoevolve_jax.evolution.run_folder import describe_run
from nanoevolve_jax.execution.settings import ConfigError
from nanoevolve_jax.prepare import (
    load_rows,
    make_engine,
    opened,
    require_room,
    use_devices,
    with_lanes,
    with_own_folder,
)


def calibrate(config: ConfigDict) -> None:
    """The command."""
    started = time.monotonic()
    if config.calibration != UNCALIBRATED:
        raise ConfigError(
            f"config.calibration is {config.calibration!r}; allowed: none, for a calibration "
            "begins with the config's own recipe"
        )
    console = Console()
    devices = use_devices(config)
    config = with_own_folder(with_lanes(config, devices, max(generation_sizes(config))))
    longest = max(2 * config.train.steps, config.confirm.steps)
    rows = load_rows(config, console, longest)
    folder = Path(config.workdir)
    description = describe_run(config, rows.fingerprints, devices, UNCALIBRATED)
    with opened(config, description, console.print) as checkpoints:
        engine = make_engine(config, rows, devices, checkpoints=checkpoints)
        budget = config.calibrate.tuning_runs or planned_runs(config)
        facts = evaluation_facts(config, rows.fingerprints)
        require_room(folder, engine, config, budget)
        with Display(
            console,
            total_steps=planned_steps(config, budget),
            batch_tokens=engine.task.batch_tokens,
            task="calibrate",
        ) as display:
            runs = Runs(folder, {"main": lambda: engine}, display.on_progress)
            display.already_done(runs.known_steps())
            tuning = tune_recipe(config, runs, budget, display.say)
            display.say(f"the recipe is now '{tuning['chosen']}': {tuning['recipe']}")
            measured = measure(config, runs, tuning["recipe"], display.say)
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
    console.print(
        f"{folder / FILE}: for --config.calibration ({time.monotonic() - started:.0f} s)",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    command.run(calibrate)
