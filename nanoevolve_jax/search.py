"""Searches for optimizer policies.

  python -m nanoevolve_jax.search --config=configs/screen.py --config.workdir=runs/mine

With `--config.plan=true` it prints what the whole campaign would take and trains nothing. The same
command resumes a search that was stopped, from its last checkpoint or generation.
"""

from pathlib import Path

from ml_collections import ConfigDict

from nanoevolve_jax import command
from nanoevolve_jax.evidence.work import total_runs
from nanoevolve_jax.evolution.archive import ArchiveError, Record
from nanoevolve_jax.evolution.campaign import Campaign, generation_sizes, planned_calls
from nanoevolve_jax.evolution.promotion import as_screened, planned_runs, promote, register
from nanoevolve_jax.evolution.proposals import FOLDER as PROPOSALS
from nanoevolve_jax.open_run import OpenRun, open_run, show_results
from nanoevolve_jax.planning import print_plan
from nanoevolve_jax.terminal.console import Console
from nanoevolve_jax.terminal.display import generation_line


def search(config: ConfigDict) -> None:
    """Runs the command."""
    console = Console()
    if config.plan:
        return print_plan(config, console)
    if (Path(config.workdir) / PROPOSALS).exists():
        raise ArchiveError(
            f"config.workdir must not be the folder of a code campaign, got {config.workdir!r}; "
            "resume it by python -m nanoevolve_jax.codegen.autonomous"
        )
    most = max(generation_sizes(config))
    with open_run(config, console, "search", steps=config.train.steps, most=most) as run:
        records = run_search(run)
        run.write_summary(records)
    show_results(run, records)


def run_search(run: OpenRun) -> list[Record]:
    """Runs the generations that are missing, then promotion if there is a calibration."""
    config, display, calibration = run.config, run.display, run.calibration
    campaign = Campaign(run.engine, config, run.folder, run.scale)
    if calibration:
        register(campaign, calibration)
    known = campaign.load(run.console.print_line)
    planned = planned_runs(config) if calibration else total_runs(planned_calls(config))
    total = max(planned, len(known))
    run.require_room(total - len(known))
    display.expect(total * config.train.steps)
    if known:
        display.already_done(len(known) * config.train.steps)
        display.log(
            f"resuming after generation {known[-1].generation}: {len(known)} candidates known"
        )
        display.show_records(known)
    run.tracking.records(as_screened(known, campaign))
    records = known
    for generation, records in campaign.generations(known, display.on_progress):
        display.show_records(records)
        display.log(generation_line(generation, records, run.against))
        run.tracking.records(as_screened(records, campaign))
    if calibration:
        records, promotion = promote(campaign, records, run.runs(), display.log)
        if promotion["candidate"] is not None:
            run.tracking.candidate(promotion["candidate"])
    return records


if __name__ == "__main__":
    command.run(search)
