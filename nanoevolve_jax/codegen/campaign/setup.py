"""Setup of a campaign of code: its providers, validation, engine and settled state."""

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from nanoevolve_jax.codegen.campaign.controller import Plan
from nanoevolve_jax.codegen.campaign.proposal import Steps
from nanoevolve_jax.codegen.campaign.questions import names_of, question_of
from nanoevolve_jax.codegen.campaign.state import State, resumed, slots_of
from nanoevolve_jax.codegen.deployment.jobs import JobPool
from nanoevolve_jax.codegen.errors import CodegenError
from nanoevolve_jax.codegen.mutators import budget, calls, providers
from nanoevolve_jax.codegen.mutators.providers import Provider
from nanoevolve_jax.codegen.sandbox import certify, recertify, runner
from nanoevolve_jax.errors import must
from nanoevolve_jax.evidence import transfer
from nanoevolve_jax.evidence.work import MAIN
from nanoevolve_jax.evolution import archive, proposals
from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.evolution.campaign import ARCHIVE, Campaign
from nanoevolve_jax.evolution.library import FOLDER as CODE
from nanoevolve_jax.evolution.library import Library
from nanoevolve_jax.evolution.promotion import as_screened
from nanoevolve_jax.evolution.proposals import require_certified_code
from nanoevolve_jax.execution.checkpoint import Checkpoints
from nanoevolve_jax.execution.engine import Engine
from nanoevolve_jax.execution.machine import visible_cores
from nanoevolve_jax.execution.ray_engine import RayEngine
from nanoevolve_jax.execution.ray_server import absolute
from nanoevolve_jax.execution.settings import ConfigError
from nanoevolve_jax.policy.certified import Code
from nanoevolve_jax.policy.slots import built_in_source

HERE = "none"  # value of config.codegen.address for training on the command's own site

Validate = Callable[[str, str], certify.Verdict]


def ensemble_of(config: ConfigDict) -> Callable[[str], Provider]:
    """Returns a function that maps the name of a provider to its profile.

    The function also accepts names outside the current ensemble, because a proposal under way may
    use a provider of an earlier ensemble.

    Args:
      config: Full configuration.

    Raises:
      ConfigError: If `config.codegen.ensemble` names no profile.
      ProviderError: If a profile is unknown, or if this machine lacks something that it needs.
    """
    profiles, names = providers.load(config.codegen.providers), names_of(config)
    field = "config.codegen.ensemble"
    if names in ([], ["none"]):
        rule = f"name one or more of {', '.join(profiles)}"
        raise ConfigError(must(field, rule, config.codegen.ensemble))
    for name in names:
        providers.choose_profile(profiles, name, field)
    under_way = "the provider of a proposal under way"
    return functools.cache(lambda name: providers.choose_profile(profiles, name, under_way))


def screening_engine(
    engine: Engine, config: ConfigDict, text: Mapping[str, str], checkpoints: Checkpoints
) -> Engine:
    """Returns the engine that screens candidates.

    Args:
      engine: Engine of the command's own site, returned if `config.codegen.address` is "none".
        Otherwise the returned engine trains candidates as jobs on a cluster.
      config: Full configuration.
      text: Fingerprints of the corpus and the tokenizer, by kind.
      checkpoints: Checkpoints of the run folder.
    """
    if config.codegen.address == HERE:
        return engine
    pool = JobPool(
        config,
        absolute(config.codegen.address, Path(config.data.cache_dir)),
        sent=Path(config.workdir) / "deployed" / "sent",
        text=dict(text),
    )
    return RayEngine(engine.task, pool, ("jobs", MAIN), 1, checkpoints)


def require_campaign_folder(folder: Path) -> None:
    """Checks that a folder is not the folder of a search, whose archive has another form.

    Args:
      folder: Run folder, which may not exist yet.

    Raises:
      ArchiveError: If it is the folder of a search.
    """
    if (folder / ARCHIVE).exists() and not (folder / proposals.FOLDER).exists():
        rule = "be a new folder or that of a campaign of code"
        raise ArchiveError(f"{must('config.workdir', rule, str(folder))}, the folder of a search")


def claim(folder: Path) -> None:
    """Marks a folder as the folder of a campaign of code, before it contains candidates.

    Args:
      folder: Run folder, which must exist.
    """
    (folder / proposals.FOLDER).mkdir(exist_ok=True)


def settled_state(campaign: Campaign, founders: int, log: Callable[[str], None]) -> State:
    """Reads the settled state of a campaign and checks the code of its archive.

    Args:
      campaign: Campaign whose run folder is read.
      founders: Number of founders, which are the first batch of the archive.
      log: Callback that takes a line for the user.

    Raises:
      ArchiveError: If the archive or the journal is damaged, or if they disagree.
      CertificateError: If the library lacks code of the archive, or if that code is damaged.
    """
    path = campaign.folder / ARCHIVE
    records = archive.load(path, [founders, 1], log)
    require_certified_code(campaign.folder, records)
    entries = proposals.read(campaign.folder / proposals.FILE)
    kept = resumed(records, entries, path)
    return State(tuple(entries), tuple(as_screened(kept, campaign)))


def plan_of(
    config: ConfigDict,
    profile: Callable[[str], Provider],
    walls: runner.Isolation,
    is_new: bool,
    log: Callable[[str], None],
) -> Plan:
    """Returns the plan of a campaign after checking that its library and sandbox can be used.

    Args:
      config: Full configuration.
      profile: Function that returns the provider profile of a name.
      walls: Isolation of the sandbox.
      is_new: Whether the campaign is new. If so, the built-in functions are certified first.
      log: Callback that takes a line for the user.

    Raises:
      CertificateError: If code in the library is damaged or refused.
      CodegenError: If a built-in function is refused on this machine, or if a file of a call is
        damaged.
    """
    folder = Path(config.workdir)
    validate, library = validator(config, walls), Library(folder / CODE)
    codes = (Code((function,)) for function in library.all())
    recertify.require_validated(codes, config.codegen.isolation)
    if is_new:
        require_built_in(config, validate, library, log)
    # Validation uses half of the cores, because the machine also trains candidates.
    validate_later = in_threads(validate, max(1, visible_cores() // 2))
    return Plan(
        question=functools.partial(
            question_of, config=config, folder=folder, shapes=certify.matrices_of(config)
        ),
        worst=lambda asked: budget.worst_proposal(profile(asked.provider), asked.prompt),
        steps=Steps(
            lambda name, prompt, place: calls.ask(profile(name), prompt, place),
            validate_later,
            library,
        ),
        limits=budget.Limits(**{name: config.codegen[name] for name in budget.Limits._fields}),
        lost=calls.lost_cost(folder),
    )


def validator(config: ConfigDict, walls: runner.Isolation) -> Validate:
    """Returns a function that takes (slot, source) and validates the source in the sandbox.

    Sources are validated for the matrices of the config's model and of the wider model used in
    confirmations.

    Args:
      config: Full configuration.
      walls: Isolation of the sandbox.
    """
    seconds = config.codegen.jail_seconds
    limits = runner.Limits(seconds=float(seconds), cpu_seconds=2 * seconds)

    def validate(slot: str, source: str) -> certify.Verdict:
        verdict = certify.validate(
            slot,
            source,
            certify.matrices_of(config),
            config.model.dtype,
            limits,
            walls,
            config.codegen.max_cost,
            also=certify.matrices_of(transfer.wider(config)),
        )
        if verdict.certified is not None:
            recertify.remember(verdict.certified)
        return verdict

    return validate


def require_built_in(
    config: ConfigDict, validate: Validate, library: Library, log: Callable[[str], None]
) -> None:
    """Certifies the built-in functions of all slots that a campaign may rewrite.

    This checks that the sandbox works before any provider is paid.

    Args:
      config: Full configuration.
      validate: Function that validates (slot, source).
      library: Library to which the certified functions are added.
      log: Callback that takes a line for the user.

    Raises:
      CodegenError: If a built-in function is refused on this machine.
    """
    for slot in slots_of(config):
        verdict = validate(slot, built_in_source(slot))
        if verdict.certified is None:
            raise CodegenError(
                f"the built-in function of slot {slot} is refused on this machine "
                f"({verdict.refusal.reason}: {verdict.refusal.message}); a larger "
                "config.codegen.jail_seconds may help"
            )
        library.put(verdict.certified)
        log(f"sandbox: the built-in {slot} is certified, {verdict.seconds:.1f} s")


def in_threads(function: Callable[..., Any], most: int) -> Callable[..., Awaitable[Any]]:
    """Returns a coroutine function that calls a function in a daemon thread.

    Args:
      function: Function to call.
      most: Largest number of threads that run at once.
    """
    turns = asyncio.Semaphore(most)

    async def call(*args: Any) -> Any:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()

        def run() -> None:
            try:
                future.set_result(function(*args))
            except BaseException as error:
                future.set_exception(error)

        async with turns:
            threading.Thread(target=run, daemon=True).start()
            return await asyncio.wrap_future(future)

    return call
