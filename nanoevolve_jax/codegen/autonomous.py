"""Lets language models rewrite parts of the optimizer, and keeps what the evidence keeps.

  python -m nanoevolve_jax.codegen.autonomous --config.codegen.ensemble=ollama

It proposes, validates in a jail, trains, selects, and again, until its budget, its patience or its
proposals are at an end, or Ctrl-C. The same command goes on where it was stopped or killed; no call
is paid twice, and none is lost.
"""

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from nanoevolve_jax import command
from nanoevolve_jax.codegen.campaign import asking
from nanoevolve_jax.codegen.campaign.controller import Controller, Plan, rules_of
from nanoevolve_jax.codegen.campaign.pipeline import Steps
from nanoevolve_jax.codegen.campaign.screening import Screening
from nanoevolve_jax.codegen.campaign.state import State, Status, resumed
from nanoevolve_jax.codegen.campaign.words import entry_line, status_line
from nanoevolve_jax.codegen.deployment.jobs import JobPool
from nanoevolve_jax.codegen.errors import CodegenError
from nanoevolve_jax.codegen.mutators import ask, budget, providers
from nanoevolve_jax.codegen.mutators.credentials import forbid_core_dumps
from nanoevolve_jax.codegen.mutators.providers import Provider
from nanoevolve_jax.codegen.sandbox import certify, recertify, runner
from nanoevolve_jax.codegen.sandbox.matrices import matrices
from nanoevolve_jax.evidence import transfer
from nanoevolve_jax.evidence.calibration_file import UNCALIBRATED
from nanoevolve_jax.evidence.runs import Runs
from nanoevolve_jax.evidence.score import Scale
from nanoevolve_jax.evidence.work import MAIN
from nanoevolve_jax.evolution import archive, proposals
from nanoevolve_jax.evolution.archive import ArchiveError, Record
from nanoevolve_jax.evolution.campaign import ARCHIVE, Campaign, generation_sizes, summarise
from nanoevolve_jax.evolution.library import FOLDER as CODE
from nanoevolve_jax.evolution.library import Library
from nanoevolve_jax.evolution.promotion import as_screened, promote, register
from nanoevolve_jax.evolution.proposals import Entry, require_certified_code
from nanoevolve_jax.evolution.run_folder import describe_run, require_free
from nanoevolve_jax.execution.checkpoint import Checkpoints
from nanoevolve_jax.execution.compilations import compilations, start_counting
from nanoevolve_jax.execution.engine import Engine
from nanoevolve_jax.execution.json_files import write_json
from nanoevolve_jax.execution.ray_engine import RayEngine
from nanoevolve_jax.execution.ray_server import absolute
from nanoevolve_jax.execution.settings import ConfigError
from nanoevolve_jax.execution.threads import visible_cores
from nanoevolve_jax.policy.certified import Code
from nanoevolve_jax.policy.slots import built_in_source
from nanoevolve_jax.prepare import calibrated, opened, require_room
from nanoevolve_jax.reporting.page import write_at_end
from nanoevolve_jax.site import Site, open_site
from nanoevolve_jax.terminal.console import Console
from nanoevolve_jax.terminal.display import Display, results_table, where_things_lie
from nanoevolve_jax.tracking.log import Log, opened_log, require_installed

_OFTEN = ("ensemble", "proposals", "dollars", "isolation")
HERE = "none"  # config.codegen.address


def autonomous(config: ConfigDict) -> None:
    """The command."""
    forbid_core_dumps()
    started = time.monotonic()
    console = Console()
    require_installed(config)
    profile = ensemble_of(config)
    walls = runner.isolation(config.codegen.isolation)
    console.print_line(f"jail: {walls.in_words()}")
    start_counting()
    compiled_before = compilations()
    folder = Path(config.workdir)
    require_free(folder)
    require_own(folder)
    with contextlib.ExitStack() as stack:
        most = 1 + config.codegen.proposals
        site = stack.enter_context(open_site(config, console, steps=config.train.steps, most=most))
        config, calibration = calibrated(site.config, site.facts)
        against = "the tuned baseline" if calibration else "an untuned baseline"
        seal = calibration.seal if calibration else UNCALIBRATED
        description = describe_run(config, site.facts, seal)
        checkpoints = stack.enter_context(opened(config, description, console.print_line))
        claim(folder)
        log = stack.enter_context(opened_log(config, description["fingerprints"], console))
        engine = screening_engine(site, config, checkpoints)
        scale = calibration.scale if calibration else Scale(1.0, 0.0, config.search.cost_weight)
        campaign = Campaign(engine, config, folder, scale)
        if calibration:
            register(campaign, calibration)
        founders, _ = generation_sizes(config)
        each = engine.width + config.codegen.fill
        require_room(folder, engine, config, founders + each * config.codegen.proposals)
        display = stack.enter_context(
            Display(
                console,
                total_steps=founders * config.train.steps,  # until `teller` knows of more
                batch_tokens=engine.task.batch_tokens,
                task="code",
            )
        )
        runs = Runs(
            folder,
            {MAIN: lambda: engine},
            display.on_progress,
            display.log,
            on_event=(display.on_run, log.run),
        )
        display.already_done(runs.known_steps())
        records = archive.load(folder / ARCHIVE, [founders, 1], display.log)
        require_certified_code(folder, records)
        entries = proposals.read(folder / proposals.FILE)
        records = resumed(records, entries, folder / ARCHIVE)
        state = State(tuple(entries), tuple(as_screened(records, campaign)))
        validate = validator(config, walls)
        library = validated_library(folder, config.codegen.isolation)
        if not entries:
            require_seeds(config, validate, library, display.log)
        if records:
            display.log(f"resuming: {len(entries)} proposals settled, {len(records)} candidates")

        plan = Plan(
            brief=functools.partial(
                asking.brief_of,
                config=config,
                folder=folder,
                shapes=matrices(config),
            ),
            worst=lambda brief: budget.worst_proposal(profile(brief.provider), brief.prompt),
            steps=Steps(
                lambda name, prompt, place: ask.ask(profile(name), prompt, place),
                validate,
                library,
            ),
            limits=budget.Limits(**{name: config.codegen[name] for name in budget.Limits._fields}),
        )
        on_event = teller(display, log, config.train.steps, engine.width)
        controller = Controller(
            Screening(campaign, runs), plan, stopping=checkpoints.stopping, on_event=on_event
        )
        state, ended = controller.run(state)
        display.log(f"ended: {ended}")
        found = list(state.records)
        if calibration:
            found, promotion = promote(campaign, found, runs, display.log)
            if promotion["candidate"] is not None:
                log.candidate(promotion["candidate"])
        summary = summarise(found, engine.task.batch_tokens) | {
            "compared_with": against,
            "ended": ended,
            "code": proposals.totals(state.entries),
            "xla_compilations": {
                name: count - compiled_before[name] for name, count in compilations().items()
            },
            "wall_seconds": round(time.monotonic() - started, 1),
        }
        write_json(folder / "summary.json", summary)
    console.page(results_table(found, count=5, against=against))
    write_at_end(folder, console.print_line)
    outcomes = f"{folder / proposals.FILE}: what became of each proposal"
    for line in [*where_things_lie(folder), outcomes]:
        console.print_line(line)


def teller(display: Display, log: Log, steps: int, width: int) -> Callable[..., None]:
    """Tells of a campaign while it runs: where it is, and a line for every settled proposal.

    Args:
      display: for a reader.
      log: for trackers.
      steps: of a run.
      width: lanes, all of which a proposal may take.
    """

    def on_event(status: Status, entry: Entry | None, records: Sequence[Record]) -> None:
        display.expect(steps * (len(records) + width * (status.proposals - status.settled)))
        if entry is not None:
            display.log(entry_line(entry, records))
            display.standing(records)
            log.records(list(records))
        display.note(status_line(status))  # in the place of what `standing` notes

    return on_event


def ensemble_of(config: ConfigDict) -> Callable[[str], Provider]:
    """Profiles by name, of the ensemble or of a proposal that an earlier ensemble has under way.

    Raises:
      CodegenError: if there is no ensemble, or a profile is unknown or lacks something.
    """
    known = providers.load(config.codegen.providers)
    names = asking.names_of(config)
    if names in ([], ["none"]):
        raise ConfigError(
            f"config.codegen.ensemble is {config.codegen.ensemble!r}; allowed: one or more of "
            f"{', '.join(known)}"
        )
    field = "config.codegen.ensemble"
    for name in names:
        providers.chosen(known, name, field)
    under_way = "the provider of a proposal under way"
    return functools.cache(lambda name: providers.chosen(known, name, under_way))


def screening_engine(site: Site, config: ConfigDict, checkpoints: Checkpoints) -> Engine:
    """Where candidates are screened: the site's own engine, or jobs of a cluster."""
    engine = site.engine(config, MAIN, checkpoints)
    if config.codegen.address == HERE:
        return engine
    pool = JobPool(
        config,
        absolute(config.codegen.address, Path(config.data.cache_dir)),
        sent=Path(config.workdir) / "deployed" / "sent",
        text={"corpus": site.facts.corpus, "tokenizer": site.facts.tokenizer},
    )
    return RayEngine(engine.task, pool, ("jobs", MAIN), 1, checkpoints)


def require_own(folder: Path) -> None:
    """Refuses the folder of a search, whose archive is of another kind.

    Raises:
      ArchiveError: if it is one.
    """
    if (folder / ARCHIVE).exists() and not (folder / proposals.FOLDER).exists():
        raise ArchiveError(
            f"config.workdir is {str(folder)!r}, the folder of a search; allowed: a new one, or "
            "that of a campaign of code"
        )


def claim(folder: Path) -> None:
    """Marks the folder as that of a campaign of code, before it has any candidate."""
    (folder / proposals.FOLDER).mkdir(exist_ok=True)


def validator(config: ConfigDict, walls: runner.Isolation):
    """Validates (slot, source) for this model and for the wider one of a confirmation."""
    limits = runner.Limits(
        seconds=float(config.codegen.jail_seconds),
        cpu_seconds=2 * config.codegen.jail_seconds,
    )
    # Beside them the machine also trains.
    turns = threading.Semaphore(max(1, visible_cores() // 2))

    def validate(slot: str, source: str) -> certify.Verdict:
        with turns:
            verdict = certify.validate(
                slot,
                source,
                matrices(config),
                config.model.dtype,
                limits,
                walls,
                config.codegen.max_cost,
                also=matrices(transfer.wider(config)),
            )
        if verdict.certified is not None:
            recertify.remember(verdict.certified)
        return verdict

    return validate


def validated_library(folder: Path, isolation: str) -> Library:
    """Opens the library of a campaign's folder, and validates what this machine has not yet.

    Raises:
      CertificateError: if a function is damaged or refused, or its programs are not those of its
        source.
    """
    library = Library(folder / CODE)
    recertify.require_validated((Code((function,)) for function in library.all()), isolation)
    return library


def require_seeds(config: ConfigDict, validate, library: Library, log) -> None:
    """Validates the built-in functions, so that nobody is paid where the jail does not work.

    Raises:
      CodegenError: if one of them is refused here.
    """
    for slot in rules_of(config).slots:
        verdict = validate(slot, built_in_source(slot))
        if verdict.refusal is not None:
            raise CodegenError(
                f"the built-in function of slot {slot} is refused on this machine "
                f"({verdict.refusal.reason}: {verdict.refusal.message}); allowed: a machine, or "
                "config.codegen.jail_seconds, on which it is not"
            )
        library.put(verdict.certified)
        log(f"jail: the built-in {slot} is certified, {verdict.seconds:.1f} s")


if __name__ == "__main__":
    often = ("workdir", "calibration", *(f"codegen.{name}" for name in _OFTEN))
    command.run(autonomous, config_file="configs/codegen.py", often=often)
