"""The ledger: which seeds and validation folds the confirmations of an evaluation have consumed.

An append-only file of JSON lines, one ledger for every calibrated evaluation. The seal of a line
is the SHA-256 of its content and of the seal before it, so that no line can be edited, moved or
taken out of the middle; a head file beside the ledger holds the number of lines and the last
seal, so that none can be taken off the end.

An event is on disk, and then in the head, before anyone acts on it. A process killed in between
leaves a line more than the head counts, which stands; one killed while writing the line leaves a
tail without a newline, which is cut off. Either way nothing that it announces had begun.

The seals catch accidents and careless edits. They do not stop a forger, and a ledger deleted
together with its head is a new ledger.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data.files import locked
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.sealed import read_sealed, write_sealed
from nanoevolve_jax.evidence.seeds import (
    MOST_CONFIRMATIONS,
    Stage,
    confirmation_fold,
    confirmation_seeds,
)

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
            log = _load(self.path, self.fingerprint)
            known = _campaigns(log.events).get(campaign)
            if known is None:
                event = {"event": "campaign", "campaign": campaign, "seed": seed}
                _append(self.path, log, event | {"confirm_max": confirm_max, "workdir": workdir})
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
            log = _load(self.path, self.fingerprint)
            for known in _confirmations(log.events):
                if (known.campaign, known.candidate) == (campaign, candidate):
                    return known
            event = _next_confirmation(log.events, campaign, candidate, self.folds)
            _append(self.path, log, event)
        return _confirmations([*log.events, event])[-1]

    def finish(self, number: int, outcome: str) -> None:
        """Enters what came of a confirmation; entering the same again changes nothing.

        Raises:
          EvidenceError: if there is no such confirmation, or another outcome is known.
        """
        with _locked(self.path):
            log = _load(self.path, self.fingerprint)
            known = {c.number: c for c in _confirmations(log.events)}
            if number not in known:
                raise EvidenceError(
                    f"{self.path} has no confirmation {number}; allowed: one of {[*known]}"
                )
            old = known[number].outcome
            if old is None:
                event = {"event": "finished", "number": number, "outcome": outcome}
                _append(self.path, log, event)
        if old not in (None, outcome):
            raise EvidenceError(
                f"confirmation {number} ended as {old!r} and now as {outcome!r}; "
                "allowed: the same again"
            )

    def campaigns(self) -> int:
        """How many searches were started under this evaluation."""
        with _locked(self.path):
            return len(_campaigns(_load(self.path, self.fingerprint).events))

    def confirmations(self) -> list[Confirmation]:
        """Every confirmation so far, by number."""
        with _locked(self.path):
            return _confirmations(_load(self.path, self.fingerprint).events)


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
        log = _load(path, fingerprint)
        if not log.events:
            event = {"event": "ledger", "format": FORMAT, "fingerprint": fingerprint}
            _append(path, log, event)
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


class _Log(NamedTuple):
    events: list[Event]
    seal: str  # of the last one; "" if there is none
    size: int  # bytes of the complete lines


def _line(event: Event, previous: str) -> bytes:
    text = json.dumps(event, allow_nan=False)
    seal = hashlib.sha256((previous + text).encode()).hexdigest()
    return json.dumps(event | {"seal": seal}).encode()


def _parse(line: bytes, previous: str) -> tuple[Event, str]:
    """The event of a line and its seal; the line must be what `_line` makes, byte for byte."""
    event = json.loads(line)
    seal = event.pop("seal")
    if _line(event, previous) != line:
        raise ValueError("its seal does not fit")
    return event, seal


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


def _load(path: Path, fingerprint: str) -> _Log:
    """Reads and checks a whole ledger; brings a head that a kill left behind up to date.

    Raises:
      EvidenceError: see `open_ledger`.
    """
    content = path.read_bytes() if path.exists() else b""
    *lines, tail = content.split(b"\n")
    events: list[Event] = []
    seals = [""]
    for number, line in enumerate(lines, start=1):
        try:
            event, seal = _parse(line, seals[-1])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EvidenceError(
                f"{path} line {number} was changed after it was written: {error}"
            ) from None
        events.append(event)
        seals.append(seal)
    head = {"count": 0, "last": ""}
    if _head_path(path).exists():
        head = read_sealed(_head_path(path), _HEAD_KIND)
    missed = len(events) - head["count"]
    if missed not in (0, 1) or seals[head["count"]] != head["last"] or (missed and tail):
        raise EvidenceError(
            f"{path} has {len(events)} events that do not agree with the {head['count']} of "
            f"{_head_path(path).name}: events were removed or replaced"
        )
    if missed:
        _write_head(path, len(events), seals[-1])
    if events and events[0].get("format") != FORMAT:
        raise EvidenceError(f"{path} has format {events[0].get('format')!r}; allowed: {FORMAT}")
    if events and events[0]["fingerprint"] != fingerprint:
        raise EvidenceError(
            f"{path} is the ledger of the evaluation {events[0]['fingerprint']}; "
            f"allowed: that of this one, {fingerprint}"
        )
    return _Log(events, seals[-1], len(content) - len(tail))


def _append(path: Path, log: _Log, event: Event) -> None:
    """Writes an event, then the head, each synced before the next."""
    line = _line(event, log.seal)
    with open(path, "ab") as file:
        file.truncate(log.size)  # a torn tail
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())
    _write_head(path, len(log.events) + 1, json.loads(line)["seal"])
