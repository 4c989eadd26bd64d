"""Searches optimizer policies.

  python -m nanoevolve_jax.search --config=configs/screen.py --config.workdir=runs/mine

Running it again with the same workdir goes on after the last complete generation.
"""

import time
from pathlib import Path

from ml_collections import ConfigDict
from rich.console import Console

from nanoevolve_jax import command
from nanoevolve_jax.display import (
    Display,
    baseline_curve,
    generation_line,
    results_table,
    where_things_lie,
)
from nanoevolve_jax.evidence.calibration_file import UNCALIBRATED
from nanoevolve_jax.evidence.runs import Runs
from nanoevolve_jax.evidence.score import Scale
from nanoevolve_jax.evolution import tournament
from nanoevolve_jax.evolution.campaign import Campaign, planned_runs, summarise
from nanoevolve_jax.evolution.promote import promote, register
from nanoevolve_jax.evolution.run_folder import describe_run, open_folder
from nanoevolve_jax.execution.compilations import compilations, start_counting
from nanoevolve_jax.execution.json_files import write_json
from nanoevolve_jax.prepare import calibrated, load_rows, make_engine, use_devices


def search(config: ConfigDict) -> None:
    """The command."""
    started = time.monotonic()
    console = Console()
    start_counting()
    compiled_before = compilations()
    devices = use_devices(config)
    rows = load_rows(config, console)
    config, calibration = calibrated(config, rows.fingerprints)
    against = "the tuned baseline" if calibration else "an untuned baseline"
    folder = Path(config.workdir)
    seal = calibration.seal if calibration else UNCALIBRATED
    open_folder(folder, describe_run(config, rows.fingerprints, devices, seal))
    engine = make_engine(config, rows, devices)
    scale = calibration.scale if calibration else Scale(1.0, 0.0, config.search.cost_weight)
    campaign = Campaign(engine, config, folder, scale)
    if calibration:
        register(campaign, calibration)
    records = campaign.load()
    steps = config.train.steps
    total = sum(campaign.sizes()[min(g, 1)] for g in range(config.search.generations + 1))
    total = max(planned_runs(config) if calibration else total, len(records))
    with Display(
        console, total_steps=total * steps, batch_tokens=engine.task.batch_tokens, task="search"
    ) as display:
        if records:
            display.already_done(len(records) * steps)
            display.say(
                f"resuming after generation {records[-1].generation}: "
                f"{len(records)} candidates known"
            )
        for generation, so_far in campaign.generations(display.on_progress):
            records = so_far
            best = tournament.survivors(records, 1)[0]
            display.note(f"best {best.id} {best.merit.val_bpb:.4f}")
            display.say(generation_line(generation, records, against))
        if calibration:
            runs = Runs(folder, {"main": lambda: engine}, display.on_progress)
            records, _ = promote(campaign, records, runs, display.say)
    summary = summarise(records, engine.task.batch_tokens) | {"compared_with": against}
    summary["xla_compilations"] = {
        name: count - compiled_before[name] for name, count in compilations().items()
    }
    summary["wall_seconds"] = round(time.monotonic() - started, 1)
    write_json(folder / "summary.json", summary)
    console.print(results_table(records, count=5, against=against))
    console.print(f"baseline validation bpb: {baseline_curve(folder)}", highlight=False)
    for line in where_things_lie(folder):
        console.print(line, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    command.run(search)
