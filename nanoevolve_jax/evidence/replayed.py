"""The record of a replay: it lies beside its card, and only it can lift the card to level 5."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanoevolve_jax.evidence.levels import level_with_replay
from nanoevolve_jax.evidence.sealed import read_sealed

KIND = "replay"
ENDING = ".replay.json"


def record_path(card: Path) -> Path:
    """Path of the record of a card's replay: `g003c04.replay.json` for `g003c04.json`."""
    return card.with_suffix(ENDING)


def is_record(path: Path) -> bool:
    """Whether a file of an evidence folder is the record of a replay and not a card."""
    return path.name.endswith(ENDING)


def read_replay(card: Path) -> dict[str, Any] | None:
    """Returns the record of a card's replay, or None if there is none.

    Raises:
      EvidenceError: if the record was edited or is damaged.
    """
    path = record_path(card)
    return read_sealed(path, KIND) if path.exists() else None


def with_replay(card: Mapping[str, Any], record: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns a card with the level that it has together with the record of a replay.

    A record of another card does not count: it names the seal of the card that was replayed.
    """
    own = record is not None and record.get("card") == card.get("seal")
    passes = record.get("agrees") is True if own else None
    return {**card, "level": level_with_replay(card, passes)._asdict()}
