"""Searches optimizer policies.

  python -m nanoevolve_jax.search --config=configs/screen.py --config.workdir=runs/mine

Running it again with the same workdir goes on where the last checkpoint or generation ended.
"""

import functools
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
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.evolution.campaign import Campaign, generation_sizes, planned_runs, summarise
from nanoevolve_jax.evolution.promote import promote, register
from nanoevolve_jax.evolution.run_folder import describe_run
from nanoevolve_jax.execution.compilations import compilations, start_counting
from nanoevolve_jax.execution.json_files import write_json
from nanoevolve_jax.prepare import (
    calibrated,
    load_rows,
    make_engine,
    opened,
    require_room,
    use_devices,
    with_lanes,
    with_own_folder,
)


def search(config: ConfigDict) -> None:
    """The command."""
    started = time.monotonic()
    console = Console()
    say = functools.partial(console.print, highlight=False, soft_wrap=True)
    start_counting()
    compiled_before = compilations()
    devices = use_devices(config)
    config = with_own_folder(with_lanes(config, devices, max(generation_sizes(config))))
    rows = load_rows(config, console)
    config, calibration = calibrated(config, rows.fingerprints)
    against = "the tuned baseline" if calibration else "an untuned baseline"
    folder = Path(config.workdir)
    seal = calibration.seal if calibration else UNCALIBRATED
    description = describe_run(config, rows.fingerprints, devices, seal)
    with opened(config, description, say) as checkpoints:
        engine = make_engine(config, rows, devices, checkpoints=checkpoints)
        scale = calibration.scale if calibration else Scale(1.0, 0.0, config.search.cost_weight)
        campaign = Campaign(engine, config, folder, scale)
        if calibration:
            register(campaign, calibration)
        records = run(campaign, calibration is not None, against, console)
        summary = summarise(records, engine.task.batch_tokens) | {"compared_with": against}
        # What follows is of the process that ended the search, everything above of its records.
        summary["xla_compilations"] = {
            name: count - compiled_before[name] for name, count in compilations().items()
        }
        summary["wall_seconds"] = round(time.monotonic() - started, 1)
        write_json(folder / "summary.json", summary)
    console.print(results_table(records, count=5, against=against))
    say(f"baseline validation bpb: {baseline_curve(folder)}")
    for line in where_things_lie(folder):
        say(line)


def run(campaign: Campaign, calibrated: bool, against: str, console: Console) -> list[Record]:
    """Runs what is left of the search, promotion included if it is calibrated."""
    engine, config = campaign.engine, campaign.config
    records = campaign.load()
    steps = config.train.steps
    first, later = generation_sizes(config)
    total = first + later * config.search.generations
    total = max(planned_runs(config) if calibrated else total, len(records))
    require_room(campaign.folder, engine, config, total - len(records))
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
        if calibrated:
            runs = Runs(campaign.folder, {"main": lambda: engine}, display.on_progress)
            records, _ = promote(campaign, records, runs, display.say)
    return records


if __name__ == "__main__":
    command.run(search)
