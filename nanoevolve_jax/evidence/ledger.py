"""The ledger: seeds and validation folds that the confirmations of an evaluation have used up.

Each calibrated evaluation has one ledger, a journal (see `execution.journal`) in which an edited,
moved or missing line is noticed. A head file beside it holds the number of lines and the last seal,
so that lines missing at the end are noticed too.

An event is written to the ledger, then counted in the head, and only then acted on. A process
killed in between leaves a line that the head does not count, which is kept. A process killed while
it writes the line leaves a tail without a newline, which is cut off. In both cases the action has
not begun.

Seals catch accidents and careless edits. They do not stop a forger, and a ledger that is deleted
together with its head begins anew.
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
    seeds: tuple[int, ...]  # uint32[64]; n pairs use the first n
    exploratory: bool  # beyond the share of its campaign, so it cannot be a win
    confirmations: int  # confirmations of its campaign that count; divides p
    outcome: str | None  # None: not finished


@dataclasses.dataclass(frozen=True)
class Ledger:
    """A ledger on disk, see `open_ledger`. Every method reads it again, under a lock."""

    path: Path
    fingerprint: str
    folds: int

    def register_campaign(
        self, campaign: str, seed: int, confirm_max: int, workdir: str = ""
    ) -> None:
        """Enters a search when it starts; entering it again changes nothing.

        Args:
          campaign: Id of the search.
          seed: `config.seed`.
          confirm_max: Number of its confirmations that count.
          workdir: Name of its run folder, for people.

        Raises:
          EvidenceError: If it was started with another seed or number of confirmations.
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
        """Takes the next fold and seeds for a candidate; they are used up once this returns.

        The same candidate always gets the same confirmation. So a killed confirmation resumes, and
        a finished one, whose `outcome` is known, does not get a second chance.

        Raises:
          EvidenceError: If the campaign is not registered, or all folds or seeds are used up.
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
        """Enters the outcome of a confirmation; entering the same again changes nothing.

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
        """Returns how many searches were started under this evaluation."""
        with _locked(self.path):
            return len(_campaigns(_load(self.path, self.fingerprint)))

    def confirmations(self) -> list[Confirmation]:
        """Returns all confirmations so far, by number."""
        with _locked(self.path):
            return _confirmations(_load(self.path, self.fingerprint))


def ledger_path(cache: Path, fingerprint: str) -> Path:
    """Returns the path of an evaluation's ledger, in the cache with the text that it gives out.

    A second calibration of one evaluation, or a copy of the first, leads to the same ledger.

    Args:
      cache: `config.data.cache_dir`.
      fingerprint: Fingerprint of the evaluation.
    """
    return cache / FOLDER / f"{fingerprint}.jsonl"


def open_ledger(path: Path, fingerprint: str, folds: int) -> Ledger:
    """Opens the ledger of an evaluation, or begins it.

    Args:
      path: Path of the ledger, see `ledger_path`; its folder is made if necessary.
      fingerprint: Fingerprint of the evaluation.
      folds: `config.data.folds`, which the fingerprint covers.

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


# What the events mean ------------------------------------------------------------------------


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
    """Checks the form of an event, and that it begins the ledger or refers to earlier events."""
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
    folder = os.open(path.parent, os.O_RDONLY)  # a new file name is synced with its folder
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
    """Reads and checks a whole ledger; updates a head that a kill left behind.

    Raises:
      EvidenceError: see `open_ledger`.
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
    """Writes an event, then the head, each synced before the next."""
    seal = journal.append(path, [event])
    _write_head(path, known + 1, seal)
