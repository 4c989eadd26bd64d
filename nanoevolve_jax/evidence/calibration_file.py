"""The document a calibration leaves, and whether it applies to the evaluation at hand."""

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
    """What search, promotion and confirmation need of a calibration."""

    path: Path
    fingerprint: str  # of the evaluation
    seal: str  # of the document
    recipe: dict[str, float]  # tuned, named as in `configs.base.SETTINGS`
    scale: Scale  # at the screening horizon
    sigma: float  # bpb, between seeds at the full horizon
    sigma_interval: tuple[float, float]  # its 95 % interval
    paired_sigma: float  # bpb, of a difference of runs that share a seed, at the full horizon
    repeat_difference: float  # bpb
    panel_auc: float
    spent: dict[str, dict[str, int]]  # runs, failed runs and tokens by stage


def evaluation_facts(config: ConfigDict, facts: Facts) -> dict[str, Any]:
    """What a calibration holds for: other facts mean other noise and another best recipe.

    Versions, cores and lanes are left out: they change a run's last digits, not how runs
    scatter. The recipe is left out because it is what calibration finds.
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
    """Sixteen hexadecimal digits that equal facts share."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def load_calibration(path: Path, facts: dict[str, Any]) -> Calibration:
    """Reads a calibration that must apply to an evaluation.

    Raises:
      EvidenceError: if the file is missing, truncated or edited, or was made for another
        evaluation, naming what differs.
    """
    document = read_sealed(path, KIND, CalibrationDocument)
    found = differences(document["evaluation"], facts)
    if found:
        raise EvidenceError(
            f"config.calibration is {str(path)!r}, made for another evaluation: "
            f"{'; '.join(found)}; allowed: a calibration of this one, or none"
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
