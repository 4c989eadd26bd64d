"""The evidence card of one candidate: everything its verdict rests on, as one JSON document."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanoevolve_jax.evidence.calibration_file import Calibration
from nanoevolve_jax.evidence.comparison import Arm
from nanoevolve_jax.evidence.forms import CardForm, require_consistent
from nanoevolve_jax.evidence.levels import level_of_card, no_win
from nanoevolve_jax.evidence.retuned import is_retuned_baseline, is_static
from nanoevolve_jax.evidence.sealed import read_sealed
from nanoevolve_jax.evidence.trial import Trial
from nanoevolve_jax.policy.mutations import describe_change
from nanoevolve_jax.policy.spec_json import spec_to_json

KIND = "evidence"


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
    card = read_sealed(path, KIND, CardForm)
    require_consistent(card, path)
    return card


def is_win(card: Mapping[str, Any]) -> bool:
    """Whether the candidate was confirmed, and its confirmation counts."""
    return no_win(card) is None
