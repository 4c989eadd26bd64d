"""Confirms a candidate of a finished search and writes its evidence card."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from nanoevolve_jax.evidence import eligibility, trial
from nanoevolve_jax.evidence.calibration_file import Calibration
from nanoevolve_jax.evidence.card import KIND, Origin, is_win, make_card
from nanoevolve_jax.evidence.comparison import Arm, Bench
from nanoevolve_jax.evidence.documents import PromotionDocument
from nanoevolve_jax.evidence.eligibility import is_retuned_baseline
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.ledger import Ledger
from nanoevolve_jax.evidence.page import to_markdown
from nanoevolve_jax.evidence.replay import read_replay, with_replay
from nanoevolve_jax.evidence.sealed import read_sealed, write_sealed
from nanoevolve_jax.evidence.verdict import Unattributed, judge
from nanoevolve_jax.evolution import archive, promotion, tournament
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.evolution.campaign import ARCHIVE, summarise
from nanoevolve_jax.execution.json_files import read_json, write_json
from nanoevolve_jax.execution.plain_files import subfolder, write_whole
from nanoevolve_jax.execution.settings import ConfigError


class Selection(NamedTuple):
    """The candidate to confirm and the arms that it is compared with."""

    records: list[Record]  # all records of the search
    candidate: Arm
    baseline: Arm  # the tuned baseline
    comparator: Arm  # the baseline, or a control or retuned baseline that scored better

    @property
    def references(self) -> list[Arm]:
        """Arms that the candidate has to beat."""
        same = self.comparator.id == self.baseline.id
        return [self.baseline] if same else [self.baseline, self.comparator]

    def arm(self, name: str) -> Arm:
        """Returns the reference with a given id."""
        return next(arm for arm in self.references if arm.id == name)


def select(folder: Path, candidate: str) -> Selection:
    """Returns the candidate to confirm and the arms that it is compared with.

    Args:
      folder: Run folder of a finished search.
      candidate: Id of a candidate, or `promoted` for the one that promotion picked.

    Returns:
      The candidate and the references.

    Raises:
      EvidenceError: If promotion has not ended, or picked no candidate.
      ConfigError: If the candidate is not in the archive.
    """
    picked = read_sealed(folder / promotion.FILE, promotion.KIND, PromotionDocument)
    records = archive.load_all(folder / ARCHIVE)
    names = [record.id for record in records if record.recipe is None and record.failure is None]
    names = [name for name in names if name != tournament.BASELINE_ID]
    if candidate == "promoted":
        candidate = picked["candidate"]
        if candidate is None:
            raise EvidenceError(
                f"{folder / promotion.FILE}: promotion picked no candidate; choose one by "
                "--config.candidate=ID"
            )
    if candidate not in names:
        raise ConfigError(f"config.candidate must be promoted or one of {names}, got {candidate!r}")
    by_id = {record.id: record for record in records}
    if picked["comparator"] not in by_id:
        raise EvidenceError(
            f"{folder / promotion.FILE}: comparator must be an id of {folder / ARCHIVE}, got "
            f"{picked['comparator']!r}"
        )
    arms = (
        promotion.arm_of(by_id[name], folder)
        for name in (candidate, records[0].id, picked["comparator"])
    )
    return Selection(records, *arms)


def require_constraints(bench: Bench, baseline: Arm, candidate: Arm) -> None:
    """Checks the constraints of a candidate before it uses up seeds and a fold.

    Promotion checks only its finalists, but any candidate can be confirmed.

    Args:
      bench: Config and runs of the comparison.
      baseline: Tuned baseline.
      candidate: Candidate to confirm.

    Raises:
      EvidenceError: If the candidate breaks a constraint. The message names the constraint.
    """
    measured = eligibility.measure(bench, baseline, [candidate], "confirm: constraints")
    if (reason := measured.broken(candidate.id)) is not None:
        raise EvidenceError(
            f"config.candidate must keep every constraint, got {candidate.id!r}: {reason}"
        )


def try_candidate(
    bench: Bench,
    selection: Selection,
    ledger: Ledger,
    folder: Path,
    protocol: Callable[..., trial.Protocol],
) -> trial.Trial:
    """Runs the trial of a candidate, unless it is only a retuned baseline.

    Args:
      bench: Config and runs of the comparison.
      selection: Candidate to confirm and its references.
      ledger: Ledger of the evaluation, which allocates seeds and a fold and records the outcome.
      folder: Run folder of the search.
      protocol: Function that returns the protocol of the trial, called with the keyword arguments
        `slot` and `on_outcome`.

    Returns:
      The finished trial, without training for a retuned baseline.

    Raises:
      EvidenceError: If the candidate breaks a constraint, or the trial cannot be run.
    """
    _, candidate, baseline, comparator = selection
    if is_retuned_baseline(candidate.spec, comparator.spec, candidate.code):
        label = judge(Unattributed.RETUNED)
        return trial.Trial({"confirmation": None}, label, None, comparator.id)
    require_constraints(bench, baseline, candidate)
    slot = ledger.consume(promotion.campaign_id(folder), candidate.id)
    chosen = protocol(slot=slot, on_outcome=lambda outcome: ledger.finish(slot.number, outcome))
    names = " and ".join(arm.id for arm in selection.references)
    share = "; exploratory, because this search has used up its confirmations that count"
    chosen.log(
        f"{candidate.id} against {names} on validation fold {slot.fold}"
        + (share if slot.exploratory else "")
    )
    return trial.run(bench, candidate, selection.references, chosen)


def keep_card(
    folder: Path,
    tried: trial.Trial,
    selection: Selection,
    calibration: Calibration,
    origin: Origin,
    batch_tokens: float,
) -> tuple[dict[str, Any], Path]:
    """Writes the card of a trial and its page, and marks a winner in the archive and the summary.

    Args:
      folder: Run folder of the search.
      tried: Finished trial.
      selection: Candidate of the trial and its references.
      calibration: Calibration of the evaluation.
      origin: Origin of the card.
      batch_tokens: Number of tokens per training step.

    Returns:
      The card, with a level that takes its replay into account, and the path of the card.
    """
    candidate = selection.candidate
    card = make_card(tried, candidate, selection.arm(tried.against), calibration, origin)
    path = subfolder(folder, "evidence") / f"{candidate.id}.json"
    document = with_replay(write_sealed(path, KIND, dict(card)), read_replay(path))
    write_whole(path.with_suffix(".md"), to_markdown(document))
    if is_win(document):
        records = [
            r._replace(status="winner") if r.id == candidate.id else r for r in selection.records
        ]
        archive.rewrite(folder / ARCHIVE, records)
        summary = read_json(folder / "summary.json", dict[str, Any])
        write_json(folder / "summary.json", summary | summarise(records, batch_tokens))
    return document, path
