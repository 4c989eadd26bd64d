"""Replay of a confirmation: jobs of a card, comparison of results, and the record of a replay.

The record is stored beside its card. A card can reach level 5 only with a record.
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
    id: str  # id of the candidate
    agrees: bool  # whether the results agree
    exact: bool  # whether all results had to be equal
    limit: float  # largest permitted difference of a pair's gain, in bpb; 0 for equal results
    seeds: list[int]
    baseline_bpb: list[float | None]
    winner_bpb: list[float | None]
    versions: dict[str, str]
    device: dict[str, Any]
    lanes: int
    data_parallel: int


# Replay --------------------------------------------------------------------------------------


class RecordedPairs(NamedTuple):
    """Pairs of a card's confirmation."""

    jobs: list[Job]  # jobs of the baseline, then those of the winner
    bpb: np.ndarray  # results of baseline and winner; float64[2, pairs], NaN for failed runs
    paired_sigma: float  # standard deviation of the gain of a pair, in bpb
    seeds: list[int]


def read_confirmed_card(path: Path) -> Mapping[str, Any]:
    """Reads a card that contains a confirmation.

    Args:
      path: Path of the card.

    Returns:
      The card.

    Raises:
      EvidenceError: If the card cannot be read or does not contain a confirmation.
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
      card: Evidence card.
      config: Full configuration of the replay.
      path: Path of the card, for error messages.
      pairs: Maximum number of pairs.
      find_code: Function that returns the certified function with a given id.

    Returns:
      The pairs.

    Raises:
      EvidenceError: If the card has no pairs, or has an invalid fold or recipe.
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
    """Checks that the corpus and the tokenizer are those of a card.

    Args:
      card: Evidence card.
      facts: Facts about the data and the machine.
      path: Path of the card, for the error message.

    Raises:
      EvidenceError: If one of them differs. The message contains both fingerprints.
    """
    for name, fingerprint in (("corpus", facts.corpus), ("tokenizer", facts.tokenizer)):
        if (before := card["fingerprints"].get(name)) != fingerprint:
            raise EvidenceError(
                f"the {name} must have fingerprint {before}, as for {path}, got {fingerprint}"
            )


def is_exact(card: Mapping[str, Any], config: ConfigDict, facts: Facts) -> bool:
    """Returns whether a replay must be bit-identical.

    This is the case if versions, device, lanes and data parallelism are those of the card.

    Args:
      card: Evidence card.
      config: Full configuration of the replay.
      facts: Facts about the data and the machine.
    """
    same = (facts.versions, facts.device) == (card["versions"], card["device"])
    return same and all(
        card["config"].get(name, config[name]) == config[name]
        for name in ("lanes", "data_parallel")
    )


def agrees(before: np.ndarray, now: np.ndarray, limit: float) -> bool:
    """Returns whether the results of a replay agree with those of the card.

    The same runs must have failed.

    Args:
      before: Bits per byte of baseline and winner on the card; float[2, pairs], NaN for failed
        runs.
      now: Bits per byte of baseline and winner in the replay; float[2, pairs].
      limit: Largest permitted difference of a pair's gain, in bpb; 0 if results must be equal.
    """
    if limit == 0:
        return np.array_equal(before, now, equal_nan=True)
    off = np.abs((before[0] - before[1]) - (now[0] - now[1]))
    return bool(np.array_equal(np.isnan(before), np.isnan(now)) and not np.any(off > limit))


# The record ----------------------------------------------------------------------------------


def record_path(card: Path) -> Path:
    """Returns the path of a card's record, such as `g003c04.replay.json` for `g003c04.json`."""
    return card.with_suffix(_ENDING)


def is_record(path: Path) -> bool:
    """Returns whether a file in an evidence folder is the record of a replay instead of a card."""
    return path.name.endswith(_ENDING)


def read_replay(card: Path) -> dict[str, Any] | None:
    """Returns the record of a card's replay, or None if there is none.

    Args:
      card: Path of the card.

    Raises:
      EvidenceError: If the record was edited or is damaged.
    """
    path = record_path(card)
    return read_sealed(path, KIND) if path.exists() else None


def with_replay(card: Mapping[str, Any], record: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns a copy of a card with the level that takes its replay into account.

    Args:
      card: Evidence card.
      record: Record of a replay, or None. A record of a card with another seal is ignored.
    """
    passes = None
    if record is not None and record.get("card") == card.get("seal"):
        passes = record.get("agrees") is True
    return {**card, "level": level_with_replay(card, passes)._asdict()}
