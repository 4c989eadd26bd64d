"""Tests one candidate against the tuned baseline, and asks what its gain comes from.

  python -m nanoevolve_jax.confirm --config=configs/confirm.py --config.workdir=runs/mine

The search must have run with a calibration. Running it again goes on where it stopped.
"""

import functools
import json
from pathlib import Path

from ml_collections import ConfigDict
from rich.console import Console

from configs.base import CONFIRM_SETTINGS
from data.rows import build_rows
from nanoevolve_jax import command
from nanoevolve_jax.display import Display
from nanoevolve_jax.evidence import attribution, transfer, trial
from nanoevolve_jax.evidence.calibration_file import UNCALIBRATED
from nanoevolve_jax.evidence.card import KIND, sentence, to_markdown
from nanoevolve_jax.evidence.comparison import Bench
from nanoevolve_jax.evidence.confirmation import WIN
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.levels import ladder_of, level_of, required_seeds
from nanoevolve_jax.evidence.retuned import is_retuned_baseline, is_static
from nanoevolve_jax.evidence.runs import Runs
from nanoevolve_jax.evidence.sealed import read_sealed, write_sealed
from nanoevolve_jax.evidence.verdict import judge
from nanoevolve_jax.evolution import archive, promote, tournament
from nanoevolve_jax.evolution.archive import ArchiveError
from nanoevolve_jax.evolution.campaign import ARCHIVE, Campaign, summarise
from nanoevolve_jax.evolution.run_folder import describe_run, open_folder
from nanoevolve_jax.execution.json_files import write_json
from nanoevolve_jax.execution.settings import ConfigError, check_fields, validate
from nanoevolve_jax.policy.mutations import describe_change
from nanoevolve_jax.policy.spec_json import spec_to_json
from nanoevolve_jax.prepare import calibrated, load_rows, make_engine, use_devices


def search_config(workdir: str) -> ConfigDict:
    """The config that a run folder was made with.

    Raises:
      ArchiveError: if the folder holds no run, or one without a calibration.
    """
    path = Path(workdir) / "config.json"
    try:
        config = ConfigDict(json.loads(path.read_text(encoding="utf-8"))["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArchiveError(
            f"config.workdir is {workdir!r}; allowed: the folder of a finished search ({error})"
        ) from None
    config.workdir = workdir
    validate(config)
    if config.calibration == UNCALIBRATED:
        raise EvidenceError(
            f"config.workdir is {workdir!r}, a search without a calibration: nothing can win "
            "against an untuned baseline; allowed: one started with --config.calibration"
        )
    return config


def confirm(settings: ConfigDict) -> None:
    """The command."""
    console = Console()
    config = search_config(settings.workdir)
    folder = Path(settings.workdir)
    devices = use_devices(config)
    longest = config.confirm.steps * (2 if settings.until == "transfer" else 1)
    rows = load_rows(config, console, longest)
    config, calibration = calibrated(config, rows.fingerprints)
    description = describe_run(config, rows.fingerprints, devices, calibration.seal)
    open_folder(folder, description)
    config.train.evaluations = config.confirm.evaluations
    records, chosen = read_search(folder, settings.candidate)
    by_id = {record.id: record for record in records}
    record, reference = by_id[chosen["candidate"]], by_id[chosen["comparator"]]
    retuned = is_retuned_baseline(record.spec, reference.spec)

    engine = functools.cache(lambda: make_engine(config, rows, devices))

    @functools.cache
    def other_rows():
        return build_rows(
            config.attribute.switch_corpus,
            vocab_size=config.data.vocab_size,
            sequence_len=config.model.sequence_len,
            cache_dir=config.data.cache_dir,
            tokenizer=rows.tokenizer,
        ).train

    engines = {
        "main": engine,
        attribution.SWITCH: lambda: engine()._replace(
            stream=engine().stream._replace(other_rows=other_rows())
        ),
        attribution.WIDE: lambda: make_engine(config, rows, devices, capacity=2),
        transfer.WIDER: lambda: make_engine(transfer.wider(config), rows, devices),
    }
    batch_tokens = config.train.batch_size * config.model.sequence_len
    campaign = Campaign(None, config, folder, calibration.scale)
    ledger = promote.ledger_of(campaign, calibration)
    card = {
        "id": record.id,
        "change": describe_change(reference.spec, record.spec) or "none",
        "spec": spec_to_json(record.spec),
        "baseline": {
            "id": reference.id,
            "spec": spec_to_json(reference.spec),
            "recipe": calibration.recipe | (reference.recipe or {}),
        },
        "static": is_static(record.spec),
        "retuned_baseline": retuned,
        "calibration": {
            "seal": calibration.seal,
            "evaluation": calibration.fingerprint,
            "sigma": calibration.sigma,
            "paired_sigma": calibration.paired_sigma,
            "panel_auc": calibration.panel_auc,
            "repeat_difference": calibration.repeat_difference,
        },
        "campaigns": ledger.campaigns(),
        "confirmations": config.confirm.max,
        "evaluations": config.confirm.evaluations,
        "exploratory": False,
        "confirmation": None,
        "attribution": None,
        "phases": None,
        "transfer": None,
        "config": config.to_dict(),
        "versions": description["versions"],
        "device": description["device"],
        "fingerprints": description["fingerprints"],
    }
    verdict, gates = judge(confirmed=False, retuned=retuned), None
    with Display(
        console,
        total_steps=trial.planned_steps(config),
        batch_tokens=batch_tokens,
        task="confirm",
    ) as display:
        runs = Runs(folder, engines, display.on_progress)
        bench = Bench(config, runs)
        if not retuned:
            consumed = ledger.consume(promote.campaign_id(folder), record.id)
            if consumed.exploratory:
                display.say(
                    f"exploratory: this search may have {consumed.confirmations} confirmations "
                    "that count, and has had them"
                )
            display.say(
                f"{record.id} against {reference.id} on validation fold {consumed.fold}, "
                f"{card['campaigns']} searches under this evaluation"
            )
            rules = trial.rules_of(config, consumed.confirmations)
            card["power"] = trial.say_power(calibration, rules, display.say)
            sides, card["confirmation"], made = trial.confirm(
                bench,
                promote.arm_of(record),
                promote.arm_of(reference),
                consumed,
                calibration.sigma,
                record.cost / reference.cost,
                display.say,
            )
            pairs = card["confirmation"]["pairs"]
            card |= {
                "exploratory": consumed.exploratory,
                "fold": consumed.fold,
                "seeds": list(consumed.seeds[:pairs]),
                "arms": trial.arms_to_json(bench, sides),
            }
            ledger.finish(consumed.number, card["confirmation"]["outcome"])
            won = card["confirmation"]["outcome"] == WIN
            verdict = judge(confirmed=won)
            card["phases"] = trial.numbers(attribution.phases(bench, made["winner"], record.spec))
            gates = attribution.gates(bench, [r for r in made["winner"] if r.failure is None])
            if won and settings.until != "confirm":
                display.expect(trial.planned_steps(config, won=True))
                verdict, card["attribution"] = trial.attribute(
                    bench, sides, consumed, rules.seeds, display.say
                )
            if won and settings.until == "transfer":
                count = required_seeds(
                    card["confirmation"]["test"]["mean"], calibration.paired_sigma
                )
                card["transfer"] = trial.transfer_tests(bench, sides, consumed, count)
        card["spent"] = runs.spent()
    write_card(folder, card, verdict, gates, settings)
    won = card["confirmation"] is not None and card["confirmation"]["outcome"] == WIN
    if won and not card["exploratory"]:
        records = [r._replace(status="winner") if r.id == record.id else r for r in records]
        archive.rewrite(folder / ARCHIVE, records)
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        write_json(folder / "summary.json", summary | summarise(records, batch_tokens))
    console.print(sentence(card), highlight=False, soft_wrap=True)
    for suffix in ("md", "json"):
        console.print(
            str(folder / "evidence" / f"{record.id}.{suffix}"), highlight=False, soft_wrap=True
        )


def read_search(folder: Path, candidate: str) -> tuple[list[archive.Record], dict]:
    """The records of a finished search, and who is compared with whom.

    Raises:
      EvidenceError: if promotion has not ended, or picked nothing.
      ConfigError: if the candidate is not in the archive.
    """
    promotion = read_sealed(folder / promote.FILE, promote.KIND)
    records = archive.load_all(folder / ARCHIVE)
    names = [record.id for record in records if record.recipe is None and record.failure is None]
    names.remove(tournament.BASELINE_ID)
    if candidate == "promoted":
        candidate = promotion["candidate"]
        if candidate is None:
            raise EvidenceError(
                f"{folder / promote.FILE}: promotion picked nothing; "
                "allowed: --config.candidate with the id of a candidate"
            )
    if candidate not in names:
        raise ConfigError(f"config.candidate is {candidate!r}; allowed: promoted, {names}")
    return records, {"candidate": candidate, "comparator": promotion["comparator"]}


def write_card(folder: Path, card: dict, verdict, gates, settings: ConfigDict) -> None:
    """Adds verdict, level and commands to a card, and writes both of its forms."""
    level = None
    ladder = ladder_of(card, gates=gates) if card["confirmation"] is not None else None
    level = (
        level_of(ladder)._asdict()
        if ladder
        else {"level": 0, "missing": "it is a retuned baseline", "static": card["static"]}
    )
    path = folder / "evidence" / f"{card['id']}.json"
    path.parent.mkdir(exist_ok=True)
    workdir = settings.workdir
    card |= {
        "verdict": {"label": verdict.label, "release": verdict.release},
        "level": level,
        "commands": [
            "python -m nanoevolve_jax.confirm --config=configs/confirm.py "
            f"--config.workdir={workdir} --config.candidate={card['id']}",
            f"python -m nanoevolve_jax.replay {path}",
        ],
    }
    write_sealed(path, KIND, card)
    path.with_suffix(".md").write_text(to_markdown(card), encoding="utf-8")


def check(settings: ConfigDict) -> None:
    """Checks the confirmation's own fields."""
    check_fields(settings, CONFIRM_SETTINGS)


if __name__ == "__main__":
    command.run(
        confirm, config_file="configs/confirm.py", settings=CONFIRM_SETTINGS, validate=check
    )
