"""The calibration file and the evaluation to which it applies."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from nanoevolve_jax.evidence.documents import CalibrationDocument
from nanoevolve_jax.evidence.errors import EvidenceError
from nanoevolve_jax.evidence.score import Scale
from nanoevolve_jax.evidence.sealed import read_sealed
from nanoevolve_jax.execution.machine import Facts, differences

KIND = "calibration"
FILE = "calibration.json"
UNCALIBRATED = "none"


class Calibration(NamedTuple):
    """The results of a calibration that search, promotion and confirmation use."""

    path: Path
    fingerprint: str  # fingerprint of the evaluation
    seal: str  # seal of the file
    recipe: dict[str, float]  # tuned recipe, with names as in `configs.base.SETTINGS`
    scale: Scale  # at the screening horizon
    sigma: float  # standard deviation between seeds at the full horizon, in bpb
    sigma_interval: tuple[float, float]  # 95 % interval of sigma
    paired_sigma: float  # standard deviation of the difference of runs that share a seed, in bpb
    repeat_difference: float  # difference of a repeated run, in bpb
    panel_auc: float  # probability that a good spec of the panel beats a bad one
    spent: dict[str, dict[str, int]]  # runs, failed runs and tokens by stage


def evaluation_facts(config: ConfigDict, facts: Facts) -> dict[str, Any]:
    """Returns the facts that the noise and the best recipe depend on.

    Versions, cores and lanes are left out, because they change the rounding of a run but not the
    noise. The recipe is left out, because it is a result of calibration.

    Args:
      config: Full configuration.
      facts: Facts about the data and the machine.
    """
    data, model, train = config.data, config.model, config.train
    return {
        "corpus": facts.corpus,
        "tokenizer": facts.tokenizer,
        "data": {
            name: data[name]
            for name in ("max_train_tokens", "max_epochs", "validation_rows", "folds")
        },
        "model": model.to_dict(),
        "horizon": {"screen": train.steps, "full": config.confirm.steps},
        "batch_size": train.batch_size,
        "platform": facts.device["platform"],
    }


def fingerprint(facts: dict[str, Any]) -> str:
    """Returns a hash of facts; 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def load_calibration(path: Path, facts: dict[str, Any]) -> Calibration:
    """Reads a calibration and checks that it applies to an evaluation.

    Args:
      path: Path of the calibration file.
      facts: Facts of the evaluation, see `evaluation_facts`.

    Returns:
      The results of the calibration.

    Raises:
      EvidenceError: If the file is missing, truncated or edited, or belongs to another evaluation.
        The message names the differences.
    """
    document = read_sealed(path, KIND, CalibrationDocument)
    if changes := differences(document["evaluation"], facts):
        raise EvidenceError(
            f"config.calibration must be none or made for this evaluation, got {str(path)!r}: "
            f"{'; '.join(changes)}"
        )
    full = document["noise"]["full"]
    return Calibration(
        path=path,
        fingerprint=document["fingerprint"],
        seal=document["seal"],
        recipe=document["recipe"],
        scale=Scale(**document["scale"]),
        sigma=full["sigma"],
        sigma_interval=(full["sigma_low"], full["sigma_high"]),
        paired_sigma=full["paired_sigma"],
        repeat_difference=document["noise"]["repeat_difference"],
        panel_auc=document["panel"]["auc"],
        spent=document["spent"],
    )
