"""The evidence card, which contains the results of a trial and the commands to reproduce it."""

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
_DEVICES = ("devices", "threads")  # fields of this machine that affect the bits of a result


@dataclasses.dataclass(frozen=True)
class Origin:
    """The origin of a card.

    Attributes:
      config: Full configuration of the search, as JSON.
      campaigns: Number of searches that were started under this evaluation.
      spent: Numbers of runs, failed runs and tokens, by stage.
      commands: Commands that produce the card, see `commands`.
      facts: Fields `versions`, `device` and `fingerprints` of the run folder.
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
      trial: Finished trial.
      candidate: Candidate of the trial.
      reference: Arm that the candidate was compared with.
      calibration: Calibration of the evaluation.
      origin: Origin of the card.
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
    """Describes the difference between a candidate and the arm that it was compared with."""
    spec = describe_change(reference.spec, candidate.spec)
    slots = [f.slot for f in candidate.code.functions] if candidate.code else []
    code = f"code of {' and '.join(slots)} rewritten" if slots else ""
    return "; ".join(part for part in (spec, code) if part) or "none"


def read_card(path: Path) -> Card:
    """Reads an evidence card.

    Args:
      path: Path of the card.

    Returns:
      The card.

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
    """Returns the commands that produce a card from scratch and the command that replays it.

    Args:
      config: Config of the search, with the names of corpora that the search used.
      calibration: Path of the calibration that applies.
      named: Path of the calibration that the search used.
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
    """Returns the flags that turn the default config into another one, except for its paths.

    Args:
      config: Config of a command. A field that is missing, because the config is older, has its
        default value.
      recipe: Whether to include the fields of the recipe.
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
