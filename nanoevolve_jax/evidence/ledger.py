"""The ledger: seeds and validation folds that the confirmations of an evaluation have used up.

Each calibrated evaluation has a ledger. It is a journal (see `execution.journal`), so edited, moved
and missing lines are detected. A head file beside it contains the number of lines and the last
seal, so that missing lines at the end are detected too.

An event is written to the ledger and counted in the head before any action follows. If a process is
killed between the two writes, the last line is not counted in the head, and it is kept. If a
process is killed while it writes a line, the line has no newline at its end, and it is cut off. In
both cases, the action has not begun.

Seals detect accidents and careless edits, but not forgery. If a ledger is deleted together with its
head, a new ledger begins.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Required, TypedDict

from nanoevolve_jax.data.files import locked
from nanoevolve_jax.errors import must
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.sealed import read_sealed, write_sealed
from nanoevolve_jax.evidence.seeds import (
    MOST_CONFIRMATIONS,
    Stage,
    confirmation_fold,
    confirmation_seeds,
)
from nanoevolve_jax.execution import journal
from nanoevolve_jax.execution.job import Seed
from nanoevolve_jax.execution.json_files import Count, Id, typed
from nanoevolve_jax.execution.plain_files import FileError

FOLDER = "ledgers"
FORMAT = 1
_HEAD_KIND = "ledger head"

Event = dict[str, Any]


class Confirmation(NamedTuple):
    """Seeds and fold of one confirmation, and its outcome."""

    number: int  # counted from 0 over all campaigns of the evaluation
    campaign: str
    candidate: str
    fold: int  # fold of the validation text
    seeds: tuple[int, ...]  # 64 seeds, of which n pairs use the first n; uint32
    exploratory: bool  # whether its campaign has used up the confirmations that count
    confirmations: int  # number of confirmations of its campaign that count, which divides p
    outcome: str | None  # None if it is not finished


@dataclasses.dataclass(frozen=True)
class Ledger:
    """A ledger on disk, see `open_ledger`.

    Every method locks the file and reads it again.

    Attributes:
      path: Path of the ledger.
      fingerprint: Fingerprint of the evaluation.
      folds: Number of validation folds, `config.data.folds`.
    """

    path: Path
    fingerprint: str
    folds: int

    def register_campaign(
        self, campaign: str, seed: int, confirm_max: int, workdir: str = ""
    ) -> None:
        """Registers a search when it starts. A search may be registered more than once.

        Args:
          campaign: Id of the search.
          seed: Seed of the search, `config.seed`.
          confirm_max: Number of its confirmations that count.
          workdir: Name of its run folder, for display.

        Raises:
          EvidenceError: If it was registered with another seed or number of confirmations.
        """
        with _locked(self.path):
            events = _load(self.path, self.fingerprint)
            known = _campaigns(events).get(campaign)
            if known is None:
                event = {"event": "campaign", "campaign": campaign, "seed": seed}
                _append(
                    self.path, len(events), event | {"confirm_max": confirm_max, "workdir": workdir}
                )
                return
        for name, key, value in (
            ("confirm.max", "confirm_max", confirm_max),
            ("seed", "seed", seed),
        ):
            if known[key] != value:
                rule = f"be {known[key]}, its value when this search started"
                raise EvidenceError(must(f"config.{name}", rule, value))

    def consume(self, campaign: str, candidate: str) -> Confirmation:
        """Allocates the next fold and seeds to a candidate.

        The same candidate always receives the same confirmation. A confirmation that was killed can
        therefore be resumed, and a finished one, which has an `outcome`, cannot be repeated.

        Args:
          campaign: Id of a registered search.
          candidate: Id of the candidate.

        Returns:
          The confirmation of the candidate.

        Raises:
          EvidenceError: If the search is not registered, or all folds or seeds have been used.
        """
        with _locked(self.path):
            events = _load(self.path, self.fingerprint)
            for known in _confirmations(events):
                if (known.campaign, known.candidate) == (campaign, candidate):
                    return known
            event = _next_confirmation(events, campaign, candidate, self.folds)
            _append(self.path, len(events), event)
        return _confirmations([*events, event])[-1]

    def finish(self, number: int, outcome: str) -> None:
        """Records the outcome of a confirmation. The same outcome may be recorded more than once.

        Args:
          number: Number of the confirmation.
          outcome: Outcome of the confirmation.

        Raises:
          EvidenceError: If there is no such confirmation, or it has another outcome.
        """
        with _locked(self.path):
            events = _load(self.path, self.fingerprint)
            known = {c.number: c for c in _confirmations(events)}
            if number not in known:
                rule = f"be one of {[*known]}"
                raise EvidenceError(must(f"confirmation of {self.path}", rule, number))
            old = known[number].outcome
            if old is None:
                event = {"event": "finished", "number": number, "outcome": outcome}
                _append(self.path, len(events), event)
        if old not in (None, outcome):
            raise EvidenceError(must(f"outcome of confirmation {number}", f"be {old!r}", outcome))

    def campaigns(self) -> int:
        """Returns the number of searches that were started under this evaluation."""
        with _locked(self.path):
            return len(_campaigns(_load(self.path, self.fingerprint)))

    def confirmations(self) -> list[Confirmation]:
        """Returns all confirmations so far, ordered by number."""
        with _locked(self.path):
            return _confirmations(_load(self.path, self.fingerprint))


def ledger_path(cache: Path, fingerprint: str) -> Path:
    """Returns the path of an evaluation's ledger.

    It is in the cache of the validation text. All calibrations of an evaluation and their copies
    share the same ledger.

    Args:
      cache: Folder of the cache, `config.data.cache_dir`.
      fingerprint: Fingerprint of the evaluation.
    """
    return cache / FOLDER / f"{fingerprint}.jsonl"


def open_ledger(path: Path, fingerprint: str, folds: int) -> Ledger:
    """Opens the ledger of an evaluation, and creates it if it does not exist.

    Args:
      path: Path of the ledger, see `ledger_path`. Its folder is created if necessary.
      fingerprint: Fingerprint of the evaluation.
      folds: Number of validation folds, `config.data.folds`.

    Returns:
      The ledger.

    Raises:
      EvidenceError: If the ledger belongs to another evaluation, was changed after it was written,
        lacks events, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvidenceError(f"{path} cannot be read or written: {error}") from None
    with _locked(path):
        events = _load(path, fingerprint)
        if not events:
            event = {"event": "ledger", "format": FORMAT, "fingerprint": fingerprint}
            _append(path, 0, event)
    return Ledger(path, fingerprint, folds)


# Events --------------------------------------------------------------------------------------


def _campaigns(events: list[Event]) -> dict[str, Event]:
    return {e["campaign"]: e for e in events if e["event"] == "campaign"}


def _confirmations(events: list[Event]) -> list[Confirmation]:
    campaigns = _campaigns(events)
    outcomes = {e["number"]: e["outcome"] for e in events if e["event"] == "finished"}
    return [
        Confirmation(
            number=e["number"],
            campaign=e["campaign"],
            candidate=e["candidate"],
            fold=e["fold"],
            seeds=tuple(e["seeds"]),
            exploratory=e["exploratory"],
            confirmations=campaigns[e["campaign"]]["confirm_max"],
            outcome=outcomes.get(e["number"]),
        )
        for e in events
        if e["event"] == "confirmation"
    ]


def _next_confirmation(events: list[Event], campaign: str, candidate: str, folds: int) -> Event:
    known = _campaigns(events).get(campaign)
    if known is None:
        raise EvidenceError(
            f"campaign {campaign!r} is not in the ledger; its search must have been started under "
            "this evaluation, with this config.data.cache_dir"
        )
    earlier = _confirmations(events)
    number = len(earlier)
    if number >= MOST_CONFIRMATIONS:
        raise EvidenceError(
            f"{number} confirmations have used all seeds of this calibration; make a new one with "
            "other text"
        )
    # The number counts over all campaigns, so seeds differ even if two share `config.seed`.
    seeds = confirmation_seeds(Stage.CONFIRM, known["seed"], number)
    return {
        "event": "confirmation",
        "number": number,
        "campaign": campaign,
        "candidate": candidate,
        "fold": confirmation_fold(number, folds),
        "exploratory": sum(c.campaign == campaign for c in earlier) >= known["confirm_max"],
        "seeds": seeds,
    }


# The file ------------------------------------------------------------------------------------


class _Head(TypedDict):
    count: Count
    last: str


class _Campaign(TypedDict, total=False):
    event: Literal["campaign"]
    campaign: Required[Id]
    seed: Required[Count]
    confirm_max: Required[Count]
    workdir: str


class _Confirmation(TypedDict):
    event: Literal["confirmation"]
    number: Count
    campaign: Id
    candidate: Id
    fold: Count
    exploratory: bool
    seeds: list[Seed]


class _Finished(TypedDict):
    event: Literal["finished"]
    number: Count
    outcome: str


class _Begun(TypedDict):
    event: Literal["ledger"]
    format: int
    fingerprint: str


_EVENTS = {
    "ledger": _Begun,
    "campaign": _Campaign,
    "confirmation": _Confirmation,
    "finished": _Finished,
}


def _require_event(event: Event, before: list[Event]) -> None:
    """Checks the fields of an event and its references to earlier events."""
    kind = event.get("event")
    if not isinstance(kind, str) or kind not in _EVENTS or (kind == "ledger") != (not before):
        wanted = "one of campaign, confirmation, finished" if before else "ledger"
        raise ValueError(f"event must be {wanted}, got {kind!r}")
    typed(event, _EVENTS[kind])
    if kind == "confirmation" and event["campaign"] not in _campaigns(before):
        raise ValueError(f"campaign must be a registered one, got {event['campaign']!r}")


def _head_path(path: Path) -> Path:
    return path.with_suffix(".head.json")


def _write_head(path: Path, count: int, seal: str) -> None:
    write_sealed(_head_path(path), _HEAD_KIND, {"count": count, "last": seal})
    folder = os.open(path.parent, os.O_RDONLY)  # syncing makes a new file name durable
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        with locked(path.with_suffix(".lock")):
            yield
    except OSError as error:
        raise EvidenceError(f"{path} cannot be read or written: {error}") from None


def _load(path: Path, fingerprint: str) -> list[Event]:
    """Reads and checks a ledger, and completes the head if a process was killed before it did so.

    Raises:
      EvidenceError: If the ledger is invalid, see `open_ledger`.
    """
    try:
        lines = journal.read(path)
    except FileError as error:
        raise EvidenceError(str(error)) from None
    events: list[Event] = []
    for number, event in enumerate(lines.documents, start=1):
        try:
            _require_event(event, events)
        except ValueError as error:
            raise EvidenceError(f"{path} line {number} is damaged: {error}") from None
        events.append(event)
    head: dict[str, Any] = {"count": 0, "last": ""}
    if _head_path(path).exists():
        head = read_sealed(_head_path(path), _HEAD_KIND, _Head)
    missed = len(events) - head["count"]
    counted = lines.seals[head["count"] - 1] if head["count"] and missed in (0, 1) else ""
    if missed not in (0, 1) or counted != head["last"] or (missed and lines.torn):
        raise EvidenceError(
            f"{path} has {len(events)} events that do not agree with the {head['count']} of "
            f"{_head_path(path).name}: events were removed or replaced"
        )
    if missed:
        _write_head(path, len(events), lines.seals[-1])
    if events and events[0].get("format") != FORMAT:
        raise EvidenceError(must(f"format of {path}", f"be {FORMAT}", events[0].get("format")))
    if events and events[0]["fingerprint"] != fingerprint:
        rule = f"be the ledger of this evaluation, {fingerprint}"
        raise EvidenceError(must(str(path), rule, events[0]["fingerprint"]))
    return events


def _append(path: Path, known: int, event: Event) -> None:
    """Writes and syncs an event, then the head."""
    seal = journal.append(path, [event])
    _write_head(path, known + 1, seal)
