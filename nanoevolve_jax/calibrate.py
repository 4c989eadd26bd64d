"""Measures the noise, tunes the baseline and tests the evaluator.

  python -m nanoevolve_jax.calibrate --config=configs/screen.py --config.workdir=runs/calibration

The command writes `calibration.json` for `--config.calibration`. The same command resumes a stopped
calibration.
"""

from ml_collections import ConfigDict

from nanoevolve_jax import command
from nanoevolve_jax.errors import must
from nanoevolve_jax.evidence.calibration import calibrate_evaluation, planned_calls
from nanoevolve_jax.evidence.calibration_file import FILE, KIND, UNCALIBRATED, evaluation_facts
from nanoevolve_jax.evidence.sealed import write_sealed
from nanoevolve_jax.evidence.work import total_runs, total_steps
from nanoevolve_jax.evolution.campaign import generation_sizes
from nanoevolve_jax.evolution.promotion import planned_runs
from nanoevolve_jax.execution.settings import ConfigError
from nanoevolve_jax.open_run import open_run
from nanoevolve_jax.planning import print_plan
from nanoevolve_jax.terminal.console import Console

OFTEN = (
    *("workdir", "data.corpus", "train.steps", "calibrate.seeds", "calibrate.tuning_runs"),
    *("calibrate.panel_seeds", "plan"),
)


def calibrate(config: ConfigDict) -> None:
    """Calibrates the evaluation and writes `calibration.json`, or prints the plan of a campaign.

    Args:
      config: Full configuration.

    Raises:
      UserError: If the config, the run folder or the text cannot be used.
    """
    if config.calibration != UNCALIBRATED:
        rule = "be none, because a calibration begins with the config's own recipe"
        raise ConfigError(must("config.calibration", rule, config.calibration))
    console = Console()
    if config.plan:
        return print_plan(config, console)
    longest, most = max(2 * config.train.steps, config.confirm.steps), max(generation_sizes(config))
    with open_run(config, console, "calibrate", steps=longest, most=most) as run:
        config, path = run.config, run.folder / FILE
        budget = config.calibrate.tuning_runs or planned_runs(config)
        planned = planned_calls(config, budget, run.site.facts.width)
        run.require_room(total_runs(planned))
        run.display.expect(total_steps(planned))
        runs, facts = run.runs(), evaluation_facts(config, run.site.facts)
        run.display.already_done(runs.known_steps())
        results = calibrate_evaluation(
            config, runs, budget, facts, run.display.log, run.display.expect_more
        )
        origin = {name: run.description[name] for name in ("versions", "device")}
        write_sealed(path, KIND, results | origin | {"config": config.to_dict()})
    console.print_line(f"{path}: for --config.calibration ({run.seconds():.0f} s)")


if __name__ == "__main__":
    command.run(calibrate, often=OFTEN)
