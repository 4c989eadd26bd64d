"""The evidence card of one candidate: everything its verdict rests on, as one JSON document."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from nanoevolve_jax.configs import screen
from nanoevolve_jax.configs.base import SETTINGS
from nanoevolve_jax.evidence.calibration_file import KIND as CALIBRATION
from nanoevolve_jax.evidence.calibration_file import Calibration
from nanoevolve_jax.evidence.comparison import Arm
from nanoevolve_jax.evidence.documents import CalibrationDocument, Card, require_consistent
from nanoevolve_jax.evidence.eligibility import is_retuned_baseline, is_static
from nanoevolve_jax.evidence.levels import level_of_card, level_with_replay, no_win
from nanoevolve_jax.evidence.sealed import read_sealed
from nanoevolve_jax.evidence.trial import Trial
from nanoevolve_jax.execution.settings import flat
from nanoevolve_jax.policy.mutations import describe_change
from nanoevolve_jax.policy.spec_json import spec_to_json

KIND = "evidence"
REPLAY_KIND = "replay"
_REPLAY_ENDING = ".replay.json"
_DEVICES = ("devices", "threads")  # of this machine, but bits depend on them


def make_card(
    found: Trial,
    candidate: Arm,
    reference: Arm,
    calibration: Calibration,
    *,
    config: Mapping[str, Any],
    campaigns: int,
    spent: Mapping[str, Mapping[str, int]],
    commands: Sequence[str],
    origin: Mapping[str, Any],
) -> dict[str, Any]:
    """The card of a trial.

    Args:
      found: by the trial.
      candidate: what was tried.
      reference: what it was compared with.
      calibration: of the evaluation.
      config: of the search, whole.
      campaigns: searches started under this evaluation.
      spent: runs, failed runs and tokens by stage.
      commands: that lead from nothing to this card.
      origin: `versions`, `device` and `fingerprints`.
    """
    card = found.parts | {
        "id": candidate.id,
        "change": _change(candidate, reference),
        "spec": spec_to_json(candidate.spec),
        "sources": {f.slot: f.source for f in candidate.code.functions} if candidate.code else {},
        "baseline": {
            "id": reference.id,
            "spec": spec_to_json(reference.spec),
            "recipe": calibration.recipe | reference.recipe,
        },
        "static": is_static(candidate.spec, candidate.code),
        "retuned_baseline": is_retuned_baseline(candidate.spec, reference.spec, candidate.code),
        "verdict": {"label": found.verdict.label, "release": found.verdict.release},
        "calibration": {
            "seal": calibration.seal,
            "evaluation": calibration.fingerprint,
            "sigma": calibration.sigma,
            "sigma_interval": list(calibration.sigma_interval),
            "paired_sigma": calibration.paired_sigma,
            "panel_auc": calibration.panel_auc,
            "repeat_difference": calibration.repeat_difference,
        },
        "campaigns": campaigns,
        "confirmations": config["confirm"]["max"],
        "evaluations": config["confirm"]["evaluations"],
        "config": dict(config),
        "spent": calibration.spent | spent,
        "commands": list(commands),
        **origin,
    }
    return card | {"level": level_of_card(card, found.gates)._asdict()}


def _change(candidate: Arm, reference: Arm) -> str:
    """How a candidate differs from what it is compared with, in words."""
    spec = describe_change(reference.spec, candidate.spec)
    slots = [f.slot for f in candidate.code.functions] if candidate.code else []
    code = f"code of {' and '.join(slots)} rewritten" if slots else ""
    return "; ".join(part for part in (spec, code) if part) or "none"


def read_card(path: Path) -> dict[str, Any]:
    """Reads an evidence card.

    Raises:
      EvidenceError: if it is missing, damaged or edited, or not of a card's form.
    """
    card = read_sealed(path, KIND, Card)
    require_consistent(card, path)
    return card


def is_win(card: Mapping[str, Any]) -> bool:
    """Whether the candidate was confirmed, and its confirmation counts."""
    return no_win(card) is None


# Replay


def record_path(card: Path) -> Path:
    """Path of the record of a card's replay: `g003c04.replay.json` for `g003c04.json`."""
    return card.with_suffix(_REPLAY_ENDING)


def is_record(path: Path) -> bool:
    """Whether a file of an evidence folder is the record of a replay and not a card."""
    return path.name.endswith(_REPLAY_ENDING)


def read_replay(card: Path) -> dict[str, Any] | None:
    """Returns the record of a card's replay, or None if there is none.

    Raises:
      EvidenceError: if the record was edited or is damaged.
    """
    path = record_path(card)
    return read_sealed(path, REPLAY_KIND) if path.exists() else None


def with_replay(card: Mapping[str, Any], record: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns a card with the level that it has together with the record of a replay.

    A record of another card does not count: it names the seal of the card that was replayed.
    """
    own = record is not None and record.get("card") == card.get("seal")
    passes = record.get("agrees") is True if own else None
    return {**card, "level": level_with_replay(card, passes)._asdict()}


# Commands


def commands(config: ConfigDict, calibration: Path, where: str, candidate: str) -> list[str]:
    """Returns the commands that lead from nothing to a card, and the one that checks it.

    Args:
      config: Config of the search; its texts are named as the search named them.
      calibration: Path of the calibration that applies.
      where: Path of the calibration when the search was started.
      candidate: Id of the candidate.
    """
    began_with = ConfigDict(read_sealed(calibration, CALIBRATION, CalibrationDocument)["config"])
    folder, here = Path(config.workdir), _changed(config, _DEVICES)
    lines = {
        "calibrate": [*flags(began_with, recipe=True), f"--config.workdir={Path(where).parent}"],
        "search": [
            *flags(config, recipe=False),
            *(f"--config.calibration={where}", f"--config.workdir={folder}"),
        ],
        "confirm": [
            *("--config=configs/confirm.py", *here),
            *(f"--config.workdir={folder}", f"--config.candidate={candidate}"),
        ],
        "replay": [*here, str(folder / "evidence" / f"{candidate}.json")],
    }
    return [f"python -m nanoevolve_jax.{name} {shlex.join(rest)}" for name, rest in lines.items()]


def flags(config: ConfigDict, *, recipe: bool) -> list[str]:
    """Returns the flags that make a config of the default one, except for places.

    Args:
      config: Config of a command; a field that it lacks, being older, is at its default.
      recipe: Whether its recipe is stated.
    """
    stated = [
        path
        for path, setting in SETTINGS.items()
        if (setting.scope == "result" or path in _DEVICES)
        and path != "train.evaluations"
        and (recipe or not path.startswith("recipe."))
    ]
    return ["--config=configs/screen.py", *_changed(config, stated)]


def _changed(config: ConfigDict, paths: Sequence[str]) -> list[str]:
    """Flags of those fields that are not as in the default config."""
    own, usual = flat(config.to_dict()), flat(screen.get_config().to_dict())
    return [
        f"--config.{path}={own[path]}"
        for path in paths
        if own.get(path, usual[path]) != usual[path]
    ]
