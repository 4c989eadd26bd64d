"""Tests a candidate against the tuned baseline and attributes its gain.

  python -m nanoevolve_jax.confirm --config=configs/confirm.py --config.workdir=runs/mine

The search must have been started with a calibration. The same command resumes a stopped
confirmation.
"""

import functools
from typing import cast

from ml_collections import ConfigDict

from nanoevolve_jax import command, plugins
from nanoevolve_jax.configs.base import CONFIRM_SETTINGS
from nanoevolve_jax.evidence import trial
from nanoevolve_jax.evidence.card import Origin, commands
from nanoevolve_jax.evidence.comparison import Arm, Bench
from nanoevolve_jax.evidence.documents import ExportResult
from nanoevolve_jax.evidence.page import sentence
from nanoevolve_jax.evidence.trial import ExportCheck
from nanoevolve_jax.evidence.work import total_steps
from nanoevolve_jax.evolution import promotion
from nanoevolve_jax.evolution.campaign import SCREENING, screening_spent
from nanoevolve_jax.evolution.confirming import keep_card, select, try_candidate
from nanoevolve_jax.evolution.run_folder import read_search
from nanoevolve_jax.execution import hosts
from nanoevolve_jax.execution.settings import check_fields
from nanoevolve_jax.exports.agreement import export_result
from nanoevolve_jax.open_run import open_run
from nanoevolve_jax.reporting.page import write_at_end
from nanoevolve_jax.terminal.console import Console

OFTEN = ("workdir", "candidate", "until", "data.cache_dir", "data.corpus", "engine")


def export_check(candidate: Arm, isolation: str, log: trial.Log) -> ExportCheck:
    """Returns the function that compares a policy with its exported file for level 5.

    Create it before training starts, so that a candidate that cannot be exported fails early.

    Args:
      candidate: Candidate to confirm.
      isolation: Required isolation of the sandbox, one of the values of `codegen.isolation`.
      log: Callback that takes one line for the user.

    Raises:
      CertificateError: If a source is outside the language of rewritten functions.
      ConfigError: If the candidate has rewritten code and this machine lacks a form of isolation
        that the sandbox needs for the exported file.
    """
    plugins.require_exportable(candidate.code)
    check = plugins.export_check(candidate.code, isolation)

    def result(arm: Arm) -> ExportResult:
        return cast(ExportResult, export_result(arm.id, arm.spec, arm.code, check, log))

    return result


def confirm(settings: ConfigDict) -> None:
    """Confirms a candidate and writes its evidence card and report.

    Args:
      settings: Config with the fields of `configs.base.CONFIRM_SETTINGS`.
    """
    console, search = Console(), read_search(settings)
    longest = search.here.confirm.steps * (2 if settings.until == "transfer" else 1)
    with open_run(
        search.here, console, "confirm", steps=longest, most=1, as_written=search.named
    ) as run:
        config, calibration, folder, log = run.config, run.calibration, run.folder, run.display.log
        assert calibration is not None  # `read_search` rejects a folder without a calibration
        config.train.evaluations = config.confirm.evaluations
        selection = select(folder, settings.candidate)
        isolation = config.codegen.isolation
        check = export_check(selection.candidate, isolation, log)
        arms = [selection.candidate, *selection.references]
        plugins.require_validated([arm.code for arm in arms], isolation)
        run.display.expect(
            total_steps(trial.dry_run(config, len(selection.references)).confirmation)
        )
        ledger, runs = promotion.ledger_of(config, calibration), run.runs()
        protocol = functools.partial(
            trial.Protocol,
            calibration=calibration,
            check_export=check,
            until=settings.until,
            on_planned=run.display.expect,
            log=log,
        )
        tried = try_candidate(Bench(config, runs), selection, ledger, folder, protocol)
        named, batch_tokens = search.named(config), run.batch_tokens
        spent = {SCREENING: screening_spent(selection.records, batch_tokens)} | runs.spent()
        origin = Origin(
            config=named.to_dict(),
            campaigns=ledger.campaigns(),
            spent=spent,
            commands=commands(named, calibration.path, search.calibration, selection.candidate.id),
            facts={name: run.description[name] for name in ("versions", "device", "fingerprints")},
        )
        card, path = keep_card(folder, tried, selection, calibration, origin, batch_tokens)
    for line in (sentence(card), str(path.with_suffix(".md")), str(path)):
        console.print_line(line)
    if hosts.is_first() and (report := write_at_end(folder, console.print_line)):
        console.print_line(str(report))


if __name__ == "__main__":
    command.run(
        confirm,
        config_file="configs/confirm.py",
        settings=CONFIRM_SETTINGS,
        validate=lambda settings: check_fields(settings, CONFIRM_SETTINGS),
        often=OFTEN,
    )
