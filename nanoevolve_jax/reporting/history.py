"""Reads the run folder of a search, finished or in progress, without changing it."""

import difflib
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
from ml_collections import ConfigDict

from nanoevolve_jax.configs.base import get_config
from nanoevolve_jax.errors import must
from nanoevolve_jax.evidence.calibration_file import FILE as CALIBRATION_FILE
from nanoevolve_jax.evidence.calibration_file import KIND as CALIBRATION
from nanoevolve_jax.evidence.calibration_file import UNCALIBRATED
from nanoevolve_jax.evidence.card import read_card
from nanoevolve_jax.evidence.comparison import Bench
from nanoevolve_jax.evidence.documents import CalibrationDocument, PromotionDocument
from nanoevolve_jax.evidence.replay import is_record, read_replay, with_replay
from nanoevolve_jax.evidence.runs import Run, read_runs
from nanoevolve_jax.evidence.sealed import read_sealed
from nanoevolve_jax.evidence.trajectories import SCREENED, read_telemetry
from nanoevolve_jax.evolution import archive, promotion, proposals, tournament
from nanoevolve_jax.evolution.archive import ArchiveError, Record
from nanoevolve_jax.evolution.campaign import ARCHIVE
from nanoevolve_jax.evolution.proposals import Entry
from nanoevolve_jax.evolution.run_folder import (
    Description,
    config_of,
    is_older,
    read_description,
)
from nanoevolve_jax.execution.job import job_to_json
from nanoevolve_jax.execution.json_files import Count, read_json


class History(NamedTuple):
    """Contents of a run folder."""

    folder: Path
    config: ConfigDict  # with the calibrated recipe, if the search had a calibration
    description: dict[str, Any]  # rest of `config.json`: versions, device, fingerprints
    records: list[Record]  # complete lines of the archive; the baseline comes first
    runs: list[Run]  # runs of promotion, confirmation and later stages
    summary: dict[str, Any] | None  # None while the search is in progress
    promotion: dict[str, Any] | None  # None without a finished promotion
    cards: dict[str, dict[str, Any]]  # evidence cards by candidate id
    calibration: dict[str, Any] | None  # None without a calibration file in the folder
    proposals: list[Entry] | None = None  # code proposals; None without code mutation

    @property
    def baseline(self) -> Record:
        """Record of the baseline, tuned or not."""
        return self.records[0]

    @property
    def best(self) -> Record:
        """Record of the policy with the best score."""
        return tournament.survivors(self.records, 1)[0]

    @property
    def chosen(self) -> Record:
        """Record to look at first: the winner, else the promoted candidate, else the best."""
        by_status = {record.status: record for record in self.records}
        return by_status.get("winner") or by_status.get("promoted") or self.best

    def record(self, name: str) -> Record:
        """Returns the record with an id.

        Raises:
          ArchiveError: if the archive has no such candidate.
        """
        for record in self.records:
            if record.id == name:
                return record
        near = difflib.get_close_matches(name, [record.id for record in self.records], n=3)
        rule = f"be an id in {self.folder / ARCHIVE}, such as {', '.join(near or [self.best.id])}"
        raise ArchiveError(must("candidate", rule, name))

    def telemetry(self, name: str) -> dict[str, np.ndarray] | None:
        """Returns the telemetry columns of a run, or None if they were not stored.

        Args:
          name: Id of a candidate, for its screening run, or key of another run.

        Raises:
          EvidenceError: if the file is damaged.
        """
        screened = any(record.id == name for record in self.records)
        return read_telemetry(self.folder, name, SCREENED if screened else ())

    def runs_of(self, record: Record) -> list[Run]:
        """Returns the promotion runs of a candidate with the recipe it was screened with."""
        steps = self.config.train.steps
        bench = Bench(self.config, None)  # type: ignore[arg-type]  # it trains nothing here
        arm = promotion.arm_of(record, self.folder)
        own = job_to_json(bench.job(arm, 0, 0, steps))["candidate"]
        return [
            run for run in self.runs if run.stage == promotion.STAGE and run.job["candidate"] == own
        ]

    def tested_runs(self, card: dict[str, Any], arm: str) -> list[Run]:
        """Returns the confirmation runs of one arm in the order of the card's seeds.

        Args:
          card: Evidence card.
          arm: `baseline` or `winner`.
        """
        if not card.get("arms"):
            return []
        by_seed = {
            run.job["seed"]: run
            for run in self.runs
            if run.job["candidate"] == card["arms"][arm]
            and run.job["fold"] == card["fold"]
            and run.job["steps"] == card["config"]["confirm"]["steps"]
            and run.job["gate"] is None
            and run.job["disturbance"] is None
        }
        return [by_seed[seed] for seed in card["seeds"] if seed in by_seed]


def read_history(folder: Path, field: str = "workdir") -> History:
    """Reads a run folder.

    Args:
      folder: Run folder of a search.
      field: Name of the flag or argument that gave the folder, used in errors.

    Raises:
      ArchiveError: if the folder has no search, or no finished generation.
      EvidenceError: if a sealed file was changed.
    """
    described = _description(folder, field)
    older = is_older(described)
    description = dict(described)
    config = config_of(description.pop("config"), folder, get_config())
    # Read before the archive: a running campaign writes each candidate to the archive first.
    journal = folder / proposals.FILE
    entries = proposals.read(journal, older=older) if journal.exists() else None
    records = archive.read(folder / ARCHIVE, older=older)
    if not records or records[0].id != tournament.BASELINE_ID:
        rule = "be a run folder with at least one finished generation"
        raise ArchiveError(must(field, rule, str(folder)))
    if records[0].failure is not None:
        raise ArchiveError(f"{folder / ARCHIVE} must have a baseline that trained, got a failure")
    proposals.require_certified_code(folder, records)
    history = History(
        folder,
        config,
        description,
        records,
        read_runs(folder, older=older),
        _summary(folder / "summary.json"),
        _sealed_if_present(folder / promotion.FILE, promotion.KIND, PromotionDocument),
        _cards(folder),
        _calibration(folder, config),
        entries,
    )
    _require_known_candidates(history)
    return history


def _require_known_candidates(history: History) -> None:
    """Checks that all candidates named by other files are in the archive."""
    ids = {record.id for record in history.records}
    named = {
        f"evidence/{name}.json": [name, card["baseline"]["id"]]
        for name, card in history.cards.items()
    }
    if (selection := history.promotion) is not None:
        picked = [selection["candidate"]] if selection["candidate"] else []
        named[promotion.FILE] = [selection["comparator"], *selection["first_round"], *picked]
    named[proposals.FILE] = [
        entry.candidate for entry in history.proposals or () if entry.candidate
    ]
    for file, names in named.items():
        for name in names:
            if name not in ids:
                rule = f"name only candidates in {ARCHIVE}"
                raise ArchiveError(must(str(history.folder / file), rule, name))


def _description(folder: Path, field: str) -> Description:
    try:
        return read_description(folder)
    except (OSError, ValueError) as error:
        text = must(field, "be the run folder of a search", str(folder))
        raise ArchiveError(f"{text} ({error})") from None


def _cards(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the evidence cards by candidate, each with the level that its replay allows.

    The file of a card is named after its candidate.
    """
    cards = {}
    for path in sorted((folder / "evidence").glob("*.json")):
        if not is_record(path):
            card = read_card(path)
            if card["id"] != path.stem:
                raise ArchiveError(must(f"{path}: id", f"be {path.stem!r}", card["id"]))
            cards[path.stem] = with_replay(card, read_replay(path))
    return cards


def _calibration(folder: Path, config: ConfigDict) -> dict[str, Any] | None:
    """Returns the calibration that the search stored in its folder."""
    if config.calibration == UNCALIBRATED:
        return None
    return _sealed_if_present(folder / CALIBRATION_FILE, CALIBRATION, CalibrationDocument)


def _sealed_if_present(path: Path, kind: str, form: type) -> dict[str, Any] | None:
    return read_sealed(path, kind, form) if path.exists() else None


class _Summary(TypedDict):
    wall_seconds: NotRequired[float]
    tokens_trained: Count
    training_runs: Count


def _summary(path: Path) -> dict[str, Any] | None:
    try:
        return dict(read_json(path, _Summary))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ArchiveError(str(error)) from None
