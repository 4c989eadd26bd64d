"""Replay of a confirmation: jobs from a card, whether results agree, and the record of a replay.

The record lies beside its card. It alone can lift the card to level 5.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
from ml_collections import ConfigDict

from nanoevolve_jax.evidence.card import read_card
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.levels import level_with_replay
from nanoevolve_jax.evidence.sealed import read_sealed
from nanoevolve_jax.execution.job import Job, job_from_json
from nanoevolve_jax.execution.machine import Facts
from nanoevolve_jax.policy.certified import Certified

KIND = "replay"
_ENDING = ".replay.json"
_ARMS = ("baseline", "winner")


class ReplayDocument(TypedDict):
    """Contents of the record of a replay."""

    card: str  # seal of the card that was replayed
    id: str
    agrees: bool
    exact: bool  # whether all figures had to be equal
    limit: float  # largest allowed difference of a pair's gain, in bpb; 0 if figures must be equal
    seeds: list[int]
    baseline_bpb: list[float | None]
    winner_bpb: list[float | None]
    versions: dict[str, str]
    device: dict[str, Any]
    lanes: int
    data_parallel: int


# Running a card again ------------------------------------------------------------------------


class RecordedPairs(NamedTuple):
    """Pairs of a card's confirmation."""

    jobs: list[Job]  # the baseline's, then the winner's
    bpb: np.ndarray  # float64[2, pairs]; NaN: the run failed
    paired_sigma: float  # bpb
    seeds: list[int]


def read_confirmed_card(path: Path) -> Mapping[str, Any]:
    """Reads a card that holds a confirmation.

    Raises:
      EvidenceError: If it cannot be read or holds none.
    """
    card = read_card(path)
    if card["confirmation"] is None:
        raise EvidenceError(f"{path} must be a card with a confirmation, got one without")
    return card


def recorded_pairs(
    card: Mapping[str, Any],
    config: ConfigDict,
    path: Path,
    pairs: int,
    find_code: Callable[[str], Certified],
) -> RecordedPairs:
    """Returns the first pairs of a card.

    Args:
      card: The card.
      config: Config to replay it with.
      path: Path of the card, for error messages.
      pairs: Number of pairs; at most all pairs of the card are returned.
      find_code: Returns certified code by its id.

    Raises:
      EvidenceError: If the card has no pairs, or names a fold or a recipe that does not exist.
    """
    confirmation, seeds = card["confirmation"], card["seeds"][:pairs]
    if not seeds:
        raise EvidenceError(
            f"{path} must hold pairs of runs, got none because {confirmation['reason']}"
        )
    if card["fold"] >= config.data.folds:
        raise EvidenceError(
            f"{path}: fold must be below config.data.folds, {config.data.folds}, got {card['fold']}"
        )
    common = {"steps": config.confirm.steps, "fold": card["fold"]}
    common |= {"attempt": 0, "gate": None, "disturbance": None}
    try:
        jobs = [
            job_from_json({"candidate": card["arms"][arm], "seed": seed} | common, find_code)
            for arm in _ARMS
            for seed in seeds
        ]
    except TypeError as error:
        raise EvidenceError(f"{path}: the recipe of an arm must be a recipe: {error}") from None
    bpb = np.array([confirmation[f"{arm}_bpb"] for arm in _ARMS], np.float64)  # null becomes NaN
    return RecordedPairs(jobs, bpb[:, : len(seeds)], card["calibration"]["paired_sigma"], seeds)


def require_text(card: Mapping[str, Any], facts: Facts, path: Path) -> None:
    """Refuses a text or a tokenizer other than the card's.

    Raises:
      EvidenceError: naming both fingerprints.
    """
    for name, fingerprint in (("corpus", facts.corpus), ("tokenizer", facts.tokenizer)):
        if (before := card["fingerprints"].get(name)) != fingerprint:
            raise EvidenceError(
                f"{name} must be {before}, with which {path} was made with {name}, "
                f"got {fingerprint}"
            )


def is_exact(card: Mapping[str, Any], config: ConfigDict, facts: Facts) -> bool:
    """Returns whether every bit must be as on the card: same versions, device and layout."""
    same = (facts.versions, facts.device) == (card["versions"], card["device"])
    return same and all(
        card["config"].get(name, config[name]) == config[name]
        for name in ("lanes", "data_parallel")
    )


def agrees(before: np.ndarray, now: np.ndarray, limit: float) -> bool:
    """Returns whether results agree; the same runs must have failed.

    Args:
      before: Bits per byte of baseline and winner on the card, float[2, pairs]; NaN: failed.
      now: Bits per byte of the replay, float[2, pairs].
      limit: Largest allowed difference of a pair's gain, in bpb; 0 if figures must be equal.
    """
    if limit == 0:
        return np.array_equal(before, now, equal_nan=True)
    off = np.abs((before[0] - before[1]) - (now[0] - now[1]))
    return bool(np.array_equal(np.isnan(before), np.isnan(now)) and not np.any(off > limit))


# The record ----------------------------------------------------------------------------------


def record_path(card: Path) -> Path:
    """Returns the path of a card's record: `g003c04.replay.json` for `g003c04.json`."""
    return card.with_suffix(_ENDING)


def is_record(path: Path) -> bool:
    """Returns whether a file of an evidence folder is the record of a replay and not a card."""
    return path.name.endswith(_ENDING)


def read_replay(card: Path) -> dict[str, Any] | None:
    """Returns the record of a card's replay, or None if there is none.

    Raises:
      EvidenceError: If the record was edited or is damaged.
    """
    path = record_path(card)
    return read_sealed(path, KIND) if path.exists() else None


def with_replay(card: Mapping[str, Any], record: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns a card with the level that it has together with the record of a replay.

    The record names the seal of the card that was replayed; a record of another card is ignored.
    """
    passes = None
    if record is not None and record.get("card") == card.get("seal"):
        passes = record.get("agrees") is True
    return {**card, "level": level_with_replay(card, passes)._asdict()}
