"""What a run folder tells of its search, finished or under way; nothing in it is changed."""

import difflib
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
from ml_collections import ConfigDict

from nanoevolve_jax.configs.base import get_config
from nanoevolve_jax.evidence.calibration_file import FILE as CALIBRATION_FILE
from nanoevolve_jax.evidence.calibration_file import KIND as CALIBRATION
from nanoevolve_jax.evidence.calibration_file import UNCALIBRATED
from nanoevolve_jax.evidence.card import is_record, read_card, read_replay, with_replay
from nanoevolve_jax.evidence.comparison import Bench
from nanoevolve_jax.evidence.documents import CalibrationDocument, PromotionDocument
from nanoevolve_jax.evidence.runs import Run, read_runs
from nanoevolve_jax.evidence.sealed import read_sealed
from nanoevolve_jax.evidence.trajectories import SCREENED, read_telemetry
from nanoevolve_jax.evolution import archive, promotion, tournament
from nanoevolve_jax.evolution.archive import ArchiveError, Record
from nanoevolve_jax.evolution.campaign import ARCHIVE
from nanoevolve_jax.evolution.proposals import FILE as PROPOSALS
from nanoevolve_jax.evolution.proposals import Entry, require_certified_code
from nanoevolve_jax.evolution.proposals import read as read_proposals
from nanoevolve_jax.evolution.run_folder import config_of, is_older, read_description
from nanoevolve_jax.execution.job import job_to_json
from nanoevolve_jax.execution.json_files import Count, read_json


class History(NamedTuple):
    """A search as its folder tells it."""

    folder: Path
    config: ConfigDict  # its recipe is the calibrated one, if there is a calibration
    description: dict[str, Any]  # the rest of `config.json`: versions, device, fingerprints
    records: list[Record]  # the baseline first; whatever the archive holds in whole lines
    runs: list[Run]  # every run of promotion, confirmation and what comes after
    summary: dict[str, Any] | None  # None: the search has not ended
    promotion: dict[str, Any] | None  # None: not ended, or without a calibration
    cards: dict[str, dict[str, Any]]  # evidence by candidate
    calibration: dict[str, Any] | None  # the document; None: without one, or not in the folder
    proposals: list[Entry] | None = None  # of code, by number; None: it is no campaign of code

    @property
    def baseline(self) -> Record:
        """The tuned or untuned baseline."""
        return self.records[0]

    @property
    def best(self) -> Record:
        """The policy with the best score."""
        return tournament.survivors(self.records, 1)[0]

    @property
    def chosen(self) -> Record:
        """Whom a reader should look at first: the winner, the promoted one, or else the best."""
        standing = {record.status: record for record in self.records}
        return standing.get("winner") or standing.get("promoted") or self.best

    def record(self, name: str) -> Record:
        """The record of an id.

        Raises:
          ArchiveError: if the archive has no such candidate.
        """
        found = next((record for record in self.records if record.id == name), None)
        if found is None:
            near = difflib.get_close_matches(name, [record.id for record in self.records], n=3)
            raise ArchiveError(
                f"candidate is {name!r}; allowed: an id of {self.folder / ARCHIVE}, such as "
                f"{', '.join(near or [self.best.id])}"
            )
        return found

    def telemetry(self, name: str) -> dict[str, np.ndarray] | None:
        """Per-step columns of a candidate's screening run, or of a run's key; None: not kept.

        Raises:
          EvidenceError: if the file is damaged.
        """
        screened = any(record.id == name for record in self.records)
        return read_telemetry(self.folder, name, SCREENED if screened else ())

    def runs_of(self, record: Record) -> list[Run]:
        """The runs of promotion that trained this candidate as it was screened."""
        bench, steps = Bench(self.config, None), self.config.train.steps
        arm = promotion.arm_of(record, self.folder)
        own = job_to_json(bench.job(arm, 0, 0, steps))["candidate"]
        return [
            run for run in self.runs if run.stage == promotion.STAGE and run.job["candidate"] == own
        ]

    def tested_runs(self, card: dict[str, Any], arm: str) -> list[Run]:
        """The runs of one arm, `baseline` or `winner`, on a card's confirmation seeds."""
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
      folder: of a search.
      field: what to call it in an error.

    Raises:
      ArchiveError: if it holds no search, or none that has finished a generation.
      EvidenceError: if what stands in it was changed.
    """
    description = _description(folder, field)
    older = is_older(description)
    config = config_of(description.pop("config"), folder, get_config())
    # Before the archive, which gets every candidate first, should the campaign be under way.
    path = folder / PROPOSALS
    proposals = read_proposals(path, older=older) if path.exists() else None
    records = archive.read(folder / ARCHIVE, older=older)
    if not records or records[0].id != tournament.BASELINE_ID:
        raise ArchiveError(
            f"{field} is {str(folder)!r}, in which no generation is finished; "
            "allowed: the folder of a search that has finished one"
        )
    if records[0].failure is not None:
        raise ArchiveError(f"{folder / ARCHIVE} must have a baseline that trained, got a failure")
    require_certified_code(folder, records)
    history = History(
        folder,
        config,
        description,
        records,
        read_runs(folder, older=older),
        _if_there(folder / "summary.json"),
        _sealed_if_there(folder / promotion.FILE, promotion.KIND, PromotionDocument),
        _cards(folder),
        _calibration(folder, config),
        proposals,
    )
    _require_known(history)
    return history


def _require_known(history: History) -> None:
    """Checks that what other files say of candidates is said of candidates of the archive."""
    ids = {record.id for record in history.records}
    named = {
        f"evidence/{name}.json": [name, card["baseline"]["id"]]
        for name, card in history.cards.items()
    }
    if (found := history.promotion) is not None:
        own = [found["comparator"], *found["first_round"]]
        named[promotion.FILE] = own + ([found["candidate"]] if found["candidate"] else [])
    named[PROPOSALS] = [entry.candidate for entry in history.proposals or () if entry.candidate]
    for file, names in named.items():
        for name in names:
            if name not in ids:
                raise ArchiveError(
                    f"{history.folder / file} must name candidates of {ARCHIVE}, got {name!r}"
                )


def _description(folder: Path, field: str) -> dict[str, Any]:
    try:
        return dict(read_description(folder))
    except (OSError, ValueError) as error:
        raise ArchiveError(
            f"{field} is {str(folder)!r}; allowed: the folder of a search ({error})"
        ) from None


def _cards(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the cards of a run folder by candidate, each with the level that its replay gives it.

    The id of a card's candidate is the name of its file.
    """
    cards = {}
    for path in sorted((folder / "evidence").glob("*.json")):
        if not is_record(path):
            card = read_card(path)
            if card["id"] != path.stem:
                raise ArchiveError(f"{path}: id must be {path.stem!r}, got {card['id']!r}")
            cards[path.stem] = with_replay(card, read_replay(path))
    return cards


def _calibration(folder: Path, config: ConfigDict) -> dict[str, Any] | None:
    """Returns the calibration of the search, which lies in the folder."""
    tuned = config.calibration != UNCALIBRATED
    path = folder / CALIBRATION_FILE
    return _sealed_if_there(path, CALIBRATION, CalibrationDocument) if tuned else None


def _sealed_if_there(path: Path, kind: str, form: type) -> dict[str, Any] | None:
    return read_sealed(path, kind, form) if path.exists() else None


class _Summary(TypedDict):
    wall_seconds: NotRequired[float]
    tokens_trained: Count
    training_runs: Count


def _if_there(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path, _Summary)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ArchiveError(str(error)) from None
