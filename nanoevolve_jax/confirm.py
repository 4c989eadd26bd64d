"""Tests one candidate against the tuned baseline, and asks what its gain comes from.

  python -m nanoevolve_jax.confirm --config=configs/confirm.py --config.workdir=runs/mine

The search must have run with a calibration. Running it again goes on where it stopped.
"""

import contextlib
import functools
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from nanoevolve_jax import command, plugins
from nanoevolve_jax.configs.base import CONFIRM_SETTINGS
from nanoevolve_jax.evidence import eligibility, trial
from nanoevolve_jax.evidence.card import KIND, commands, is_win, make_card, read_replay, with_replay
from nanoevolve_jax.evidence.comparison import Arm, Bench
from nanoevolve_jax.evidence.documents import PromotionDocument
from nanoevolve_jax.evidence.eligibility import is_retuned_baseline
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.page import sentence, to_markdown
from nanoevolve_jax.evidence.runs import Runs
from nanoevolve_jax.evidence.sealed import read_sealed, write_sealed
from nanoevolve_jax.evidence.verdict import judge
from nanoevolve_jax.evidence.work import total_steps
from nanoevolve_jax.evolution import archive, promotion, tournament
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.evolution.campaign import ARCHIVE, SCREENING, screening_spent, summarise
from nanoevolve_jax.evolution.run_folder import describe_run, read_search, require_free
from nanoevolve_jax.execution import hosts
from nanoevolve_jax.execution.json_files import read_json, write_json
from nanoevolve_jax.execution.plain_files import subfolder, write_whole
from nanoevolve_jax.execution.settings import ConfigError, check_fields
from nanoevolve_jax.exports.agreement import Check
from nanoevolve_jax.policy.certified import Code
from nanoevolve_jax.prepare import calibrated, opened
from nanoevolve_jax.reporting.page import write_at_end
from nanoevolve_jax.site import engines, open_site
from nanoevolve_jax.terminal.console import Console
from nanoevolve_jax.terminal.display import Display
from nanoevolve_jax.tracking.log import opened_log, require_installed

OFTEN = ("workdir", "candidate", "until", "data.cache_dir", "data.corpus", "engine")


def check_of(code: Code | None, config: ConfigDict) -> Check:
    """How level 5 compares a policy with its file; settled before anything is spent on it.

    Raises:
      CertificateError: if a source is outside the language.
      ConfigError: if there is code, and this machine lacks walls to run its file behind.
    """
    plugins.require_exportable(code)
    return plugins.export_check(code, config.codegen.isolation)


def confirm(settings: ConfigDict) -> None:
    """The command."""
    console = Console()
    search = read_search(settings)
    config = search.here
    require_installed(config)
    longest = config.confirm.steps * (2 if settings.until == "transfer" else 1)
    require_free(Path(config.workdir))
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(open_site(config, console, steps=longest, most=1))
        config, calibration = calibrated(site.config, site.facts)
        folder = Path(config.workdir)
        named = search.named(config)
        description = describe_run(named, site.facts, calibration.seal)
        held = opened(config, description, console.print_line, keep=True)
        checkpoints = stack.enter_context(held)
        log = stack.enter_context(opened_log(config, description["fingerprints"], console))
        config.train.evaluations = config.confirm.evaluations
        records, chosen = read_records(folder, settings.candidate)
        by_id = {record.id: record for record in records}
        record, comparator = by_id[chosen["candidate"]], by_id[chosen["comparator"]]
        references = list({r.id: r for r in (records[0], comparator)}.values())
        batch_tokens = config.train.batch_size * config.model.sequence_len
        ledger = promotion.ledger_of(config, calibration)
        retuned = is_retuned_baseline(
            record.spec, comparator.spec, promotion.arm_of(record, folder).code
        )
        verdict = judge(confirmed=False, retuned=retuned)
        found = trial.Trial({"confirmation": None}, verdict, None, comparator.id)
        with Display(
            console,
            total_steps=total_steps(trial.planned_calls(config, len(references))),
            batch_tokens=batch_tokens,
            task="confirm",
        ) as display:
            runs = Runs(
                folder,
                engines(site, config, checkpoints),
                display.on_progress,
                display.log,
                on_event=(display.on_run, log.run),
            )
            if not retuned:
                bench, candidate = Bench(config, runs), promotion.arm_of(record, folder)
                check = check_of(candidate.code, config)
                arms = [promotion.arm_of(one, folder) for one in references]
                plugins.require_validated(
                    [arm.code for arm in (candidate, *arms)], config.codegen.isolation
                )
                require_constraints(bench, promotion.arm_of(records[0], folder), candidate)
                consumed = ledger.consume(promotion.campaign_id(folder), record.id)
                names = " and ".join(one.id for one in references)
                display.log(
                    f"{record.id} against {names} on validation fold {consumed.fold}"
                    + (
                        "; exploratory, for this search has had its confirmations that count"
                        if consumed.exploratory
                        else ""
                    )
                )
                found = trial.run(
                    bench,
                    candidate,
                    arms,
                    consumed=consumed,
                    calibration=calibration,
                    costs={one.id: one.cost for one in (record, *references)},
                    until=settings.until,
                    finish=functools.partial(ledger.finish, consumed.number),
                    expect=display.expect,
                    log=display.log,
                    check=check,
                )
        spent = {SCREENING: screening_spent(records, batch_tokens)} | runs.spent()
        card = make_card(
            found,
            promotion.arm_of(record, folder),
            promotion.arm_of(by_id[found.against], folder),
            calibration,
            config=search.named(config).to_dict(),
            campaigns=ledger.campaigns(),
            spent=spent,
            commands=commands(named, calibration.path, search.calibration, record.id),
            origin={name: description[name] for name in ("versions", "device", "fingerprints")},
        )
        path = subfolder(folder, "evidence") / f"{record.id}.json"
        card = with_replay(write_sealed(path, KIND, card), read_replay(path))
        write_whole(path.with_suffix(".md"), to_markdown(card))
        if is_win(card):
            crown(folder, records, record.id, batch_tokens)
    for line in (sentence(card), str(path.with_suffix(".md")), str(path)):
        console.print_line(line)
    if hosts.is_first() and (report := write_at_end(folder, console.print_line)):
        console.print_line(str(report))


def require_constraints(bench: Bench, baseline: Arm, candidate: Arm) -> None:
    """Refuses a candidate that no gain could justify, before it consumes seeds and a fold.

    Promotion asks only its finalists; any other candidate is asked here.

    Raises:
      EvidenceError: naming what it does not hold.
    """
    held = eligibility.measure(bench, baseline, [candidate], "confirm: constraints")
    if (reason := held.broken(candidate.id)) is not None:
        raise EvidenceError(
            f"config.candidate is {candidate.id!r}, which cannot win: {reason}; "
            "allowed: a candidate that holds every constraint"
        )


def crown(folder: Path, records: list[Record], winner: str, batch_tokens: float) -> None:
    """Marks the winner in the archive and the summary."""
    records = [r._replace(status="winner") if r.id == winner else r for r in records]
    archive.rewrite(folder / ARCHIVE, records)
    summary = read_json(folder / "summary.json", dict[str, Any])
    write_json(folder / "summary.json", summary | summarise(records, batch_tokens))


def read_records(folder: Path, candidate: str) -> tuple[list[Record], dict[str, str]]:
    """The records of a finished search, and who is compared with whom.

    Raises:
      EvidenceError: if promotion has not ended, or picked nothing.
      ConfigError: if the candidate is not in the archive.
    """
    document = read_sealed(folder / promotion.FILE, promotion.KIND, PromotionDocument)
    records = archive.load_all(folder / ARCHIVE)
    names = [record.id for record in records if record.recipe is None and record.failure is None]
    names = [name for name in names if name != tournament.BASELINE_ID]
    if candidate == "promoted":
        candidate = document["candidate"]
        if candidate is None:
            raise EvidenceError(
                f"{folder / promotion.FILE}: promotion picked nothing; "
                "allowed: --config.candidate with the id of a candidate"
            )
    if candidate not in names:
        raise ConfigError(f"config.candidate is {candidate!r}; allowed: promoted, {names}")
    if document["comparator"] not in [record.id for record in records]:
        raise EvidenceError(
            f"{folder / promotion.FILE}: comparator must be an id of {folder / ARCHIVE}, got "
            f"{document['comparator']!r}"
        )
    return records, {"candidate": candidate, "comparator": document["comparator"]}


def check(settings: ConfigDict) -> None:
    """Checks the confirmation's own fields."""
    check_fields(settings, CONFIRM_SETTINGS)


if __name__ == "__main__":
    command.run(
        confirm,
        config_file="configs/confirm.py",
        settings=CONFIRM_SETTINGS,
        validate=check,
        often=OFTEN,
    )
