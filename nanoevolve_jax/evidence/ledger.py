"""The ledger: which seeds and validation folds the confirmations of an evaluation have consumed.

A journal (see `execution.journal`), one for every calibrated evaluation: no line can be edited,
moved or taken out of the middle unnoticed. A head file beside the ledger holds the number of lines
and the last seal, so that none can be taken off the end.

An event is on disk, and then in the head, before anyone acts on it. A process killed in between
leaves a line more than the head counts, which stands; one killed while writing the line leaves a
tail without a newline, which is cut off. Either way nothing that it announces had begun.

The seals catch accidents and careless edits. They do not stop a forger, and a ledger deleted
together with its head is a new ledger.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Required, TypedDict

from nanoevolve_jax.data.files import locked
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
    """What one confirmation may use, and what came of it."""

    number: int  # from 0, over all campaigns of the evaluation
    campaign: str
    candidate: str
    fold: int  # of the validation text
    seeds: tuple[int, ...]  # uint32[64]; n pairs use the first n
    exploratory: bool  # beyond its campaign's share: whatever it finds is no win
    confirmations: int  # of its campaign that count, which divides p
    outcome: str | None  # None: not finished


@dataclasses.dataclass(frozen=True)
class Ledger:
    """A ledger on disk, see `open_ledger`. Every method reads it anew, under a lock."""

    path: Path
    fingerprint: str
    folds: int

    def register_campaign(
        self, campaign: str, seed: int, confirm_max: int, workdir: str = ""
    ) -> None:
        """Enters a search when it starts; entering it again changes nothing.

        Args:
          campaign: id of the search.
          seed: `config.seed`.
          confirm_max: confirmations of it that count.
          workdir: name of its run folder, for people.

        Raises:
          EvidenceError: if it was started with another seed or number of confirmations.
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
                raise EvidenceError(
                    f"config.{name} is {value} and was {known[key]} when this search started; "
                    f"allowed: {known[key]}"
                )

    def consume(self, campaign: str, candidate: str) -> Confirmation:
        """Takes the next fold and seeds for a candidate; they are gone once this returns.

        Asked again for the same candidate it gives the same confirmation, so that a killed one
        goes on where it stopped, and a finished one, whose `outcome` is known, gets no second
        chance.

        Raises:
          EvidenceError: if the campaign was never registered, or no fold or seed is left.
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
        """Enters what came of a confirmation; entering the same again changes nothing.

        Raises:
          EvidenceError: if there is no such confirmation, or another outcome is known.
        """
        with _locked(self.path):
            events = _load(self.path, self.fingerprint)
            known = {c.number: c for c in _confirmations(events)}
            if number not in known:
                raise EvidenceError(
                    f"{self.path} has no confirmation {number}; allowed: one of {[*known]}"
                )
            old = known[number].outcome
            if old is None:
                event = {"event": "finished", "number": number, "outcome": outcome}
                _append(self.path, len(events), event)
        if old not in (None, outcome):
            raise EvidenceError(
                f"confirmation {number} ended as {old!r} and now as {outcome!r}; "
                "allowed: the same again"
            )

    def campaigns(self) -> int:
        """How many searches were started under this evaluation."""
        with _locked(self.path):
            return len(_campaigns(_load(self.path, self.fingerprint)))

    def confirmations(self) -> list[Confirmation]:
        """Every confirmation so far, by number."""
        with _locked(self.path):
            return _confirmations(_load(self.path, self.fingerprint))


def ledger_path(cache: Path, fingerprint: str) -> Path:
    """Where the ledger of an evaluation lies: with the text that it gives out, under its name.

    A second calibration of one evaluation, or a copy of the first, leads to the same ledger.

    Args:
      cache: `config.data.cache_dir`.
      fingerprint: of the evaluation.
    """
    return cache / FOLDER / f"{fingerprint}.jsonl"


def open_ledger(path: Path, fingerprint: str, folds: int) -> Ledger:
    """Opens the ledger of an evaluation, or begins it.

    Args:
      path: of the ledger, see `ledger_path`; its folder is made.
      fingerprint: of the evaluation.
      folds: `config.data.folds`, which the fingerprint covers.

    Raises:
      EvidenceError: if the ledger is of another evaluation, was changed after it was written,
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


# What the events say


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
            f"campaign {campaign!r} is not in the ledger; allowed: one whose search was started "
            "under this evaluation, with this config.data.cache_dir"
        )
    made = _confirmations(events)
    number = len(made)
    if number >= MOST_CONFIRMATIONS:
        raise EvidenceError(
            f"{number} confirmations have used all seeds of this calibration; "
            "allowed: a new calibration with other text"
        )
    # The number counts over all campaigns, so seeds differ even if two share `config.seed`.
    seeds = confirmation_seeds(Stage.CONFIRM, known["seed"], number)
    return {
        "event": "confirmation",
        "number": number,
        "campaign": campaign,
        "candidate": candidate,
        "fold": confirmation_fold(number, folds),
        "exploratory": sum(c.campaign == campaign for c in made) >= known["confirm_max"],
        "seeds": seeds,
    }


# The file


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
    """Checks the form of an event, and that it begins the ledger or speaks of events before it."""
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
    folder = os.open(path.parent, os.O_RDONLY)  # names of files are synced with their folder
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
    """Reads and checks a whole ledger; brings a head that a kill left behind up to date.

    Raises:
      EvidenceError: see `open_ledger`.
    """
    try:
        found = journal.read(path)
    except FileError as error:
        raise EvidenceError(str(error)) from None
    events: list[Event] = []
    for number, event in enumerate(found.documents, start=1):
        try:
            _require_event(event, events)
        except ValueError as error:
            raise EvidenceError(f"{path} line {number} is damaged: {error}") from None
        events.append(event)
    head = {"count": 0, "last": ""}
    if _head_path(path).exists():
        head = read_sealed(_head_path(path), _HEAD_KIND, _Head)
    missed = len(events) - head["count"]
    counted = found.seals[head["count"] - 1] if head["count"] and missed in (0, 1) else ""
    if missed not in (0, 1) or counted != head["last"] or (missed and found.torn):
        raise EvidenceError(
            f"{path} has {len(events)} events that do not agree with the {head['count']} of "
            f"{_head_path(path).name}: events were removed or replaced"
        )
    if missed:
        _write_head(path, len(events), found.seals[-1])
    if events and events[0].get("format") != FORMAT:
        raise EvidenceError(f"{path} has format {events[0].get('format')!r}; allowed: {FORMAT}")
    if events and events[0]["fingerprint"] != fingerprint:
        raise EvidenceError(
            f"{path} is the ledger of the evaluation {events[0]['fingerprint']}; "
            f"allowed: that of this one, {fingerprint}"
        )
    return events


def _append(path: Path, known: int, event: Event) -> None:
    """Writes an event, then the head, each synced before the next."""
    seal = journal.append(path, [event])
    _write_head(path, known + 1, seal)
