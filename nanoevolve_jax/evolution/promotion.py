"""Promotion: trains the best candidates of a search on fresh seeds and picks one of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from nanoevolve_jax.evidence import eligibility
from nanoevolve_jax.evidence.calibration_file import Calibration
from nanoevolve_jax.evidence.comparison import Arm, Bench
from nanoevolve_jax.evidence.eligibility import is_retuned_baseline
from nanoevolve_jax.evidence.ledger import Ledger, ledger_path, open_ledger
from nanoevolve_jax.evidence.runs import Run, Runs
from nanoevolve_jax.evidence.score import PromotionRules, first_round, pick, score, second_round
from nanoevolve_jax.evidence.sealed import write_sealed
from nanoevolve_jax.evidence.seeds import PROMOTE_FOLD, Stage, stage_seed
from nanoevolve_jax.evidence.work import Call, call, total_runs
from nanoevolve_jax.evolution import archive, tournament
from nanoevolve_jax.evolution import campaign as screening
from nanoevolve_jax.evolution.archive import ArchiveError, Record
from nanoevolve_jax.evolution.campaign import ARCHIVE, Campaign, generation_sizes
from nanoevolve_jax.evolution.library import code_of
from nanoevolve_jax.evolution.run_folder import read_description
from nanoevolve_jax.execution.json_files import Id, typed

KIND = "promotion"
FILE = "promotion.json"
STAGE = "promote"


def ledger_of(config: ConfigDict, calibration: Calibration) -> Ledger:
    """Returns the ledger of an evaluation, which all calibrations of the evaluation share.

    Args:
      config: Full configuration.
      calibration: Calibration of the evaluation.
    """
    path = ledger_path(Path(config.data.cache_dir), calibration.fingerprint)
    return open_ledger(path, calibration.fingerprint, config.data.folds)


def campaign_id(folder: Path) -> str:
    """Returns the id of a run folder's campaign in the ledger.

    Folders with the same settings have the same runs and are therefore the same campaign. The rules
    of confirmation are not part of the id. Otherwise, new rules would permit another confirmation.

    Args:
      folder: Run folder.

    Raises:
      ArchiveError: If the folder has no fingerprints.
    """
    try:
        return typed(read_description(folder).get("fingerprints"), dict[str, Id])["campaign"]
    except (OSError, ValueError, KeyError) as error:
        raise ArchiveError(f"{folder} must have fingerprints in its config.json: {error}") from None


def register(campaign: Campaign, calibration: Calibration) -> None:
    """Registers a search in the ledger, which fixes the number of its confirmations that count.

    Args:
      campaign: Search to register.
      calibration: Calibration of the evaluation.
    """
    config = campaign.config
    ledger_of(config, calibration).register_campaign(
        campaign_id(campaign.folder), config.seed, config.confirm.max, campaign.folder.name
    )


def rules_of(config: ConfigDict) -> PromotionRules:
    """Returns the promotion rules of a config."""
    return PromotionRules(**{name: config.promote[name] for name in PromotionRules._fields})


def planned_calls(config: ConfigDict) -> list[Call]:
    """Returns the calls of promotion to the engine, assuming that no candidate fails.

    The baseline and the best control, if there is one, run on every seed. The baseline and the
    finalists also run once at twice the learning rate.
    """
    first, later = generation_sizes(config)
    children, every = later * config.search.generations, config.search.control_every
    controls = children // every if every else 0
    references = 1 + bool(controls)
    rules, steps = rules_of(config), config.train.steps
    entrants = min(rules.first, first - 1 + children - controls)
    finalists = min(rules.final, entrants)
    return [
        call(STAGE, (references + entrants) * rules.first_seeds, steps),
        call(STAGE, (references + finalists) * rules.final_seeds, steps),
        call(STAGE, 1 + finalists, steps),
    ]


def planned_runs(config: ConfigDict) -> int:
    """Returns the number of runs of search and promotion, the default budget of a calibration."""
    return total_runs(screening.planned_calls(config) + planned_calls(config))


def arm_of(record: Record, folder: Path) -> Arm:
    """Returns a candidate as an arm of a comparison.

    Args:
      record: Record of the candidate.
      folder: Run folder that contains its rewritten functions.
    """
    code = code_of(folder, record.code)
    return Arm(record.id, record.spec, dict(record.recipe or {}), code=code, cost=record.cost)


def with_runs(record: Record, runs: list[Run]) -> Record:
    """Returns a record with the results of runs of promotion appended.

    Args:
      record: Record of a candidate.
      runs: Runs of the candidate on fresh seeds.
    """
    failed = next((run for run in runs if run.failure), None)
    failure = failed and {"reason": failed.failure, "step": failed.failed_step}
    return record._replace(
        stage=STAGE,
        failure=record.failure or failure,
        seeds=[*record.seeds, *(run.job["seed"] for run in runs)],
        val_bpb=[*record.val_bpb, *(run.val_bpb for run in runs)],
        train_loss=[*record.train_loss, *(run.train_loss for run in runs)],
        steps=[*record.steps, *(run.steps for run in runs)],
        instability=[*record.instability, *(run.instability for run in runs)],
    )


def rescored(record: Record, baseline: Record, campaign: Campaign) -> Record:
    """Returns a record with its score over all its seeds.

    Args:
      record: Record to score.
      baseline: Record of the baseline, which must have runs on the same seeds.
      campaign: Search that the records belong to.
    """
    reference = dict(zip(baseline.seeds, baseline.val_bpb, strict=True))
    gains = [reference[s] - x for s, x in zip(record.seeds, record.val_bpb, strict=True)]
    return record._replace(score=score(gains, record.cost, baseline.cost, campaign.scale))


def screened(record: Record) -> Record:
    """Returns a record with the runs and the status that it had after screening."""
    first = {
        name: getattr(record, name)[:1]
        for name in ("seeds", "val_bpb", "train_loss", "steps", "instability")
    }
    was_survivor = record.status in ("promoted", "retuned_baseline")
    status = "survivor" if was_survivor else record.status
    return record._replace(**first, stage="screen", status=status)


def as_screened(records: list[Record], campaign: Campaign) -> list[Record]:
    """Returns records with the runs, status and scores that they had after screening.

    Args:
      records: Records of a search, of which the first is the baseline.
      campaign: Search that the records belong to.
    """
    first = screened(records[0]) if records else None
    return [rescored(screened(record), first, campaign) for record in records]


def promote(
    campaign: Campaign, records: list[Record], runs: Runs, log: Callable[[str], None]
) -> tuple[list[Record], dict[str, Any]]:
    """Runs both rounds of promotion and rewrites the archive with their results.

    The baseline and the best control run on every seed. The comparator of a later confirmation is
    the one of these, or of the retuned baselines among the finalists, with the highest score. A
    finalist is not picked if its optimizer needs too much memory, or if it fails at twice the
    learning rate and the baseline does not.

    Args:
      campaign: Search whose candidates are promoted.
      records: Records of all its candidates.
      runs: Runs of the same folder.
      log: Callback that takes one line for the user.

    Returns:
      The updated records and the contents of `promotion.json`.
    """
    config, rules = campaign.config, rules_of(campaign.config)
    bench = Bench(config, runs)
    known = {record.id: record for record in as_screened(records, campaign)}
    control = tournament.best_control(records)
    references = [records[0].id] + ([control.id] if control else [])
    policies = [r.id for r in records[1:] if r.recipe is None and r.failure is None]

    def arm(name: str) -> Arm:
        return arm_of(known[name], campaign.folder)

    def train(names: list[str], first: int, count: int) -> None:
        seeds = [stage_seed(Stage.PROMOTE, config.seed, first + i) for i in range(count)]
        jobs = [
            bench.job(arm(name), seed, PROMOTE_FOLD, config.train.steps)
            for name in names
            for seed in seeds
        ]
        results = runs.run(jobs, STAGE)
        for i, name in enumerate(names):
            known[name] = with_runs(known[name], results[i * count : (i + 1) * count])
        for name in names:
            known[name] = rescored(known[name], known[records[0].id], campaign)

    def scores(names: list[str]) -> dict[str, float]:
        return {name: known[name].score for name in names}

    entrants = first_round(scores(policies), rules)
    log(f"promotion: {len(entrants)} candidates on {rules.first_seeds} fresh seeds")
    train([*references, *entrants], 0, rules.first_seeds)
    finalists = second_round(scores(entrants), rules)
    log(f"promotion: {len(finalists)} candidates on {rules.final_seeds} more")
    train([*references, *finalists], rules.first_seeds, rules.final_seeds)

    held = eligibility.measure(bench, arm(records[0].id), [arm(name) for name in finalists], STAGE)
    fit = [name for name in finalists if held.broken(name) is None]
    # A retuned baseline cannot win, so it is treated as a reference.
    retuned = [
        name
        for name in fit
        if is_retuned_baseline(known[name].spec, records[0].spec, arm(name).code)
    ]
    comparator = max([*references, *retuned], key=lambda name: known[name].score)
    picked = pick(scores([name for name in fit if name not in retuned]))
    for name in retuned:
        known[name] = known[name]._replace(status="retuned_baseline")
        log(f"promotion: {name} is only a retuned baseline")
    if picked is not None:
        if known[picked].status != "winner":  # set by an earlier confirmation
            known[picked] = known[picked]._replace(status="promoted")
        log(
            f"promotion picks {picked}: {known[picked].score:+.2f} sigma after shrinkage, "
            f"{len(known[picked].seeds)} runs; to be compared with {comparator}"
        )
    settled = [r._replace(status="dead") if r.failure is not None else r for r in known.values()]
    archive.rewrite(campaign.folder / ARCHIVE, settled)
    document = {
        "candidate": picked,
        "retuned_baseline": retuned,
        "comparator": comparator,
        "generations": records[-1].generation,
        "first_round": entrants,
        "second_round": finalists,
        "scores": {name: _finite(known[name].score) for name in [*references, *entrants]},
        "failure_at_twice_the_lr": held.failure_at_twice_the_lr,
        "state_bytes_over_nanochat": held.state_bytes_over_nanochat,
        "spent": runs.spent()[STAGE],
    }
    return settled, write_sealed(campaign.folder / FILE, KIND, document)


def _finite(score: float) -> float | None:
    return score if score > float("-inf") else None
