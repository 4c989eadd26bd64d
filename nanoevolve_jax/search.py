"""Searches optimizer policies.

  python -m nanoevolve_jax.search --config=configs/screen.py --config.workdir=runs/mine

With `--config.plan=true` it only says what the whole campaign would take. Running it again with
the same workdir goes on where the last checkpoint or generation ended.
"""

import contextlib
import time
from pathlib import Path

from ml_collections import ConfigDict

from nanoevolve_jax import command
from nanoevolve_jax.codegen.campaign.books import FOLDER as PROPOSALS
from nanoevolve_jax.evidence.calibration_file import UNCALIBRATED
from nanoevolve_jax.evidence.runs import Runs
from nanoevolve_jax.evidence.score import Scale
from nanoevolve_jax.evidence.work import MAIN, total_runs
from nanoevolve_jax.evolution.archive import ArchiveError, Record
from nanoevolve_jax.evolution.campaign import (
    Campaign,
    generation_sizes,
    planned_calls,
    summarise,
)
from nanoevolve_jax.evolution.promote import as_screened, planned_runs, promote, register
from nanoevolve_jax.evolution.run_folder import describe_run, require_free
from nanoevolve_jax.execution import hosts
from nanoevolve_jax.execution.compilations import compilations, start_counting
from nanoevolve_jax.execution.json_files import write_json
from nanoevolve_jax.planning import print_plan
from nanoevolve_jax.prepare import calibrated, opened, require_room
from nanoevolve_jax.reporting.page import write_at_end
from nanoevolve_jax.site import open_site
from nanoevolve_jax.terminal.console import Console
from nanoevolve_jax.terminal.display import (
    Display,
    baseline_curve,
    generation_line,
    results_table,
    where_things_lie,
)
from nanoevolve_jax.tracking.log import Log, opened_log, require_installed


def search(config: ConfigDict) -> None:
    """The command."""
    started = time.monotonic()
    console = Console()
    if config.plan:
        return print_plan(config, console)
    require_installed(config)
    start_counting()
    compiled_before = compilations()
    steps, most = config.train.steps, max(generation_sizes(config))
    require_free(Path(config.workdir))
    if (Path(config.workdir) / PROPOSALS).exists():
        raise ArchiveError(
            f"config.workdir is {config.workdir!r}, the folder of a campaign of code; allowed: a "
            "new one, or python -m nanoevolve_jax.codegen.autonomous on this one"
        )
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(open_site(config, console, steps=steps, most=most))
        config, calibration = calibrated(site.config, site.facts)
        folder = Path(config.workdir)
        against = "the tuned baseline" if calibration else "an untuned baseline"
        seal = calibration.seal if calibration else UNCALIBRATED
        description = describe_run(config, site.facts, seal)
        checkpoints = stack.enter_context(opened(config, description, console.print_line))
        log = stack.enter_context(opened_log(config, description["fingerprints"], console))
        engine = site.engine(config, MAIN, checkpoints)
        scale = calibration.scale if calibration else Scale(1.0, 0.0, config.search.cost_weight)
        campaign = Campaign(engine, config, folder, scale)
        if calibration:
            register(campaign, calibration)
        records = run(campaign, calibration is not None, against, console, log)
        summary = summarise(records, engine.task.batch_tokens) | {"compared_with": against}
        # What follows is of the process that ended the search, everything above of its records.
        summary["xla_compilations"] = {
            name: count - compiled_before[name] for name, count in compilations().items()
        }
        summary["wall_seconds"] = round(time.monotonic() - started, 1)
        write_json(folder / "summary.json", summary)
    console.page(results_table(records, count=5, against=against))
    console.print_line(f"baseline validation bpb: {baseline_curve(folder)}")
    if hosts.is_first():
        write_at_end(folder, console.print_line)
    for line in where_things_lie(folder):
        console.print_line(line)


def run(
    campaign: Campaign, calibrated: bool, against: str, console: Console, log: Log
) -> list[Record]:
    """Runs what is left of the search, promotion included if it is calibrated."""
    engine, config = campaign.engine, campaign.config
    records = campaign.load(console.print_line)
    steps = config.train.steps
    planned = planned_runs(config) if calibrated else total_runs(planned_calls(config))
    total = max(planned, len(records))
    require_room(campaign.folder, engine, config, total - len(records))
    with Display(
        console, total_steps=total * steps, batch_tokens=engine.task.batch_tokens, task="search"
    ) as display:
        if records:
            display.already_done(len(records) * steps)
            display.log(
                f"resuming after generation {records[-1].generation}: "
                f"{len(records)} candidates known"
            )
            display.standing(records)
        log.records(as_screened(records, campaign))
        for generation, so_far in campaign.generations(records, display.on_progress):
            records = so_far
            display.standing(records)
            display.log(generation_line(generation, records, against))
            log.records(as_screened(records, campaign))
        if calibrated:
            runs = Runs(
                campaign.folder,
                {MAIN: lambda: engine},
                display.on_progress,
                display.log,
                on_event=(display.on_run, log.run),
            )
            records, promotion = promote(campaign, records, runs, display.log)
            if promotion["candidate"] is not None:
                log.candidate(promotion["candidate"])
    return records


if __name__ == "__main__":
    command.run(search)
