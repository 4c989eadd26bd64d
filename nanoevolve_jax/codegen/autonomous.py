"""Lets language models rewrite parts of the optimizer and selects among the results.

  python -m nanoevolve_jax.codegen.autonomous --config.codegen.ensemble=ollama

Each proposal is validated in a sandbox and trained. The campaign ends when it reaches its number of
proposals or a limit of its budget, or when it stops improving. The same command resumes a campaign
that was stopped or killed. Stored answers are reused. Calls that a kill interrupts are repeated.
"""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from nanoevolve_jax import command
from nanoevolve_jax.codegen.campaign import setup
from nanoevolve_jax.codegen.campaign.controller import Controller
from nanoevolve_jax.codegen.campaign.screening import Screening
from nanoevolve_jax.codegen.campaign.state import Status, entry_line
from nanoevolve_jax.codegen.mutators.credentials import forbid_core_dumps
from nanoevolve_jax.codegen.mutators.providers import Provider
from nanoevolve_jax.codegen.sandbox import runner
from nanoevolve_jax.evolution import proposals
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.evolution.campaign import Campaign, generation_sizes
from nanoevolve_jax.evolution.promotion import promote, register
from nanoevolve_jax.evolution.proposals import Entry
from nanoevolve_jax.open_run import OpenRun, open_run, show_results
from nanoevolve_jax.terminal.console import Console
from nanoevolve_jax.terminal.display import Display
from nanoevolve_jax.tracking.log import Log

_OFTEN = ("ensemble", "proposals", "dollars", "isolation")


def autonomous(config: ConfigDict) -> None:
    """Runs or resumes a campaign of code and shows its results.

    Args:
      config: Full configuration.

    Raises:
      UserError: If a setting, the run folder or a provider cannot be used, or if the sandbox of
        this machine lacks a required protection.
    """
    forbid_core_dumps()
    console = Console()
    profile = setup.ensemble_of(config)
    walls = runner.isolation(config.codegen.isolation)
    console.print_line(f"sandbox: {walls.in_words()}")
    setup.require_campaign_folder(Path(config.workdir))
    most = 1 + config.codegen.proposals
    with open_run(config, console, "code", steps=config.train.steps, most=most) as run:
        records = run_campaign(run, profile, walls)
    journal = run.folder / proposals.FILE
    show_results(run, records, f"{journal}: what became of each proposal")


def run_campaign(
    run: OpenRun, profile: Callable[[str], Provider], walls: runner.Isolation
) -> list[Record]:
    """Runs the remaining proposals, then promotes candidates if there is a calibration.

    Args:
      run: Open run folder with its engine, trackers and display.
      profile: Function that returns the provider profile of a name.
      walls: Isolation of the sandbox.

    Returns:
      Records of all candidates, after promotion if there is a calibration.
    """
    config, display, facts = run.config, run.display, run.site.facts
    setup.claim(run.folder)
    text = {"corpus": facts.corpus, "tokenizer": facts.tokenizer}
    engine = setup.screening_engine(run.engine, config, text, run.checkpoints)
    campaign = Campaign(engine, config, run.folder, run.scale)
    if run.calibration:
        register(campaign, run.calibration)
    founders, _ = generation_sizes(config)
    run.require_room(
        founders + (engine.width + config.codegen.fill) * config.codegen.proposals, engine
    )
    runs = run.runs(engine)
    display.expect(founders * config.train.steps)  # `reporter` raises it as proposals are settled
    display.already_done(runs.known_steps())
    state = setup.settled_state(campaign, founders, display.log)
    plan = setup.plan_of(config, profile, walls, not state.entries, display.log)
    if state.records:
        counts = f"{len(state.entries)} proposals settled, {len(state.records)} candidates"
        display.log(f"resuming: {counts}")
    on_event = reporter(display, run.tracking, config.train.steps, engine.width)
    stopping = run.checkpoints.stopping
    controller = Controller(Screening(campaign, runs), plan, stopping=stopping, on_event=on_event)
    state, ended = controller.run(state)
    display.log(f"ended: {ended}")
    records = list(state.records)
    if run.calibration:
        records, promotion = promote(campaign, records, runs, display.log)
        if promotion["candidate"] is not None:
            run.tracking.candidate(promotion["candidate"])
    run.write_summary(records, {"ended": ended, "code": proposals.totals(state.entries)})
    return records


def reporter(
    display: Display, tracking: Log, steps: int, width: int
) -> Callable[[Status, Entry | None], None]:
    """Returns a callback that reports progress and logs one line per settled proposal.

    Args:
      display: Display of progress on the terminal.
      tracking: Log of the experiment trackers.
      steps: Number of training steps per run.
      width: Number of lanes, which is the largest number of runs that a proposal adds.
    """

    def on_event(status: Status, entry: Entry | None) -> None:
        state = status.state
        left = status.proposals - len(state.entries)
        display.expect(steps * (len(state.records) + width * left))
        if entry is not None:
            display.log(entry_line(entry, state))
            display.show_records(state.records)
            tracking.records(list(state.records))
        display.note(status.line)  # replaces the note of `show_records`

    return on_event


if __name__ == "__main__":
    often = ("workdir", "calibration", *(f"codegen.{name}" for name in _OFTEN))
    command.run(autonomous, config_file="configs/codegen.py", often=often)
