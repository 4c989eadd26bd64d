"""The evidence card: everything a verdict rests on in one document, and the commands on it."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ml_collections import ConfigDict

from nanoevolve_jax.configs import screen
from nanoevolve_jax.configs.base import SETTINGS
from nanoevolve_jax.evidence.calibration_file import KIND as CALIBRATION
from nanoevolve_jax.evidence.calibration_file import Calibration
from nanoevolve_jax.evidence.comparison import Arm
from nanoevolve_jax.evidence.documents import CalibrationDocument, Card, require_consistent
from nanoevolve_jax.evidence.eligibility import is_retuned_baseline, is_static
from nanoevolve_jax.evidence.levels import level_of_card, no_win
from nanoevolve_jax.evidence.sealed import read_sealed
from nanoevolve_jax.evidence.trial import Trial
from nanoevolve_jax.execution.settings import flat
from nanoevolve_jax.policy.mutations import describe_change
from nanoevolve_jax.policy.spec_json import spec_to_json

KIND = "evidence"
_DEVICES = ("devices", "threads")  # fields of this machine that bits depend on all the same


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a card comes from.

    Attributes:
      config: Full configuration of the search, as JSON.
      campaigns: Number of searches started under this evaluation.
      spent: Runs, failed runs and tokens by stage.
      commands: Commands that lead from nothing to the card, see `commands`.
      facts: `versions`, `device` and `fingerprints` of the run folder.
    """

    config: Mapping[str, Any]
    campaigns: int
    spent: Mapping[str, Mapping[str, int]]
    commands: Sequence[str]
    facts: Mapping[str, Any]


def make_card(
    trial: Trial, candidate: Arm, reference: Arm, calibration: Calibration, origin: Origin
) -> Card:
    """Returns the card of a trial.

    Args:
      trial: The finished trial.
      candidate: The candidate.
      reference: Arm that the candidate was compared with.
      calibration: Calibration of the evaluation.
      origin: Where the card comes from.
    """
    code = candidate.code
    card: dict[str, Any] = {
        **trial.parts,
        "id": candidate.id,
        "change": _change(candidate, reference),
        "spec": spec_to_json(candidate.spec),
        "sources": {f.slot: f.source for f in code.functions} if code else {},
        "baseline": {
            "id": reference.id,
            "spec": spec_to_json(reference.spec),
            "recipe": calibration.recipe | reference.recipe,
        },
        "static": is_static(candidate.spec, code),
        "retuned_baseline": is_retuned_baseline(candidate.spec, reference.spec, code),
        "verdict": {"label": trial.verdict.label, "release": trial.verdict.release},
        "calibration": {
            "seal": calibration.seal,
            "evaluation": calibration.fingerprint,
            "sigma": calibration.sigma,
            "sigma_interval": list(calibration.sigma_interval),
            "paired_sigma": calibration.paired_sigma,
            "panel_auc": calibration.panel_auc,
            "repeat_difference": calibration.repeat_difference,
        },
        "campaigns": origin.campaigns,
        "confirmations": origin.config["confirm"]["max"],
        "evaluations": origin.config["confirm"]["evaluations"],
        "config": dict(origin.config),
        "spent": {**calibration.spent, **origin.spent},
        "commands": list(origin.commands),
        **origin.facts,
    }
    return cast(Card, card | {"level": level_of_card(card, trial.gates)._asdict()})


def _change(candidate: Arm, reference: Arm) -> str:
    """Describes how a candidate differs from the arm it is compared with."""
    spec = describe_change(reference.spec, candidate.spec)
    slots = [f.slot for f in candidate.code.functions] if candidate.code else []
    code = f"code of {' and '.join(slots)} rewritten" if slots else ""
    return "; ".join(part for part in (spec, code) if part) or "none"


def read_card(path: Path) -> Card:
    """Reads an evidence card.

    Raises:
      EvidenceError: If it is missing, damaged or edited, or does not have the fields of a card.
    """
    card = read_sealed(path, KIND, Card)
    require_consistent(card, path)
    return cast(Card, card)


def is_win(card: Mapping[str, Any]) -> bool:
    """Returns whether the candidate was confirmed and its confirmation counts."""
    return no_win(card) is None


# Commands ------------------------------------------------------------------------------------


def commands(config: ConfigDict, calibration: Path, named: str, candidate: str) -> list[str]:
    """Returns the commands that lead from nothing to a card, and the one that replays it.

    Args:
      config: Config of the search, with its texts named as the search named them.
      calibration: Path of the calibration that applies.
      named: Path of the calibration as the search named it.
      candidate: Id of the candidate.
    """
    document = read_sealed(calibration, CALIBRATION, CalibrationDocument)
    calibrated, folder = ConfigDict(document["config"]), Path(config.workdir)
    here = _changed(config, _DEVICES)
    lines = {
        "calibrate": [*flags(calibrated, recipe=True), f"--config.workdir={Path(named).parent}"],
        "search": [
            *flags(config, recipe=False),
            *(f"--config.calibration={named}", f"--config.workdir={folder}"),
        ],
        "confirm": [
            *("--config=configs/confirm.py", *here),
            *(f"--config.workdir={folder}", f"--config.candidate={candidate}"),
        ],
        "replay": [*here, str(folder / "evidence" / f"{candidate}.json")],
    }
    return [f"python -m nanoevolve_jax.{name} {shlex.join(rest)}" for name, rest in lines.items()]


def flags(config: ConfigDict, *, recipe: bool) -> list[str]:
    """Returns the flags that turn the default config into this one, except for places.

    Args:
      config: Config of a command; a field that it lacks, because it is older, has its default.
      recipe: Whether the flags include the recipe.
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
    """Returns flags for the fields that differ from the default config."""
    own, usual = flat(config.to_dict()), flat(screen.get_config().to_dict())
    return [
        f"--config.{path}={own[path]}"
        for path in paths
        if own.get(path, usual[path]) != usual[path]
    ]
