"""Histories and run folders of searches that were never run."""

import json

import numpy as np
from records import make_record

from nanoevolve_jax.configs import screen
from nanoevolve_jax.evolution import archive
from nanoevolve_jax.policy.spec import ANNEALING, Actuators, Sensors
from nanoevolve_jax.reporting.history import History

CALIBRATION = {"panel": {"auc": 0.95}, "noise": {"repeat_difference": 0.0}}


def family():
    """Returns the baseline, a preset, its child, and a control."""
    preset = {"operator": "preset", "change": "control.enabled off -> on"}
    child = {"operator": "adjust_gate_weight", "parent_id": "annealing", "generation": 1}
    child |= {"change": "control.coefficients.grad_alignment_ema 0.7 -> 1.1"}
    control = {"operator": "adjust_recipe", "recipe": {"momentum": 0.8}, "generation": 1}
    control |= {"change": "recipe.momentum 0.8335 -> 0.8"}
    return [
        make_record(status="baseline"),
        make_record("annealing", spec=ANNEALING, **preset),
        make_record("g001c00", spec=ANNEALING, score=0.1, bpb=1.991, **child),
        make_record("g001c01", **control),
    ]


def make_history(folder, records, *, calibrated=False, **fields):
    """Returns the history of a finished search, by default without a calibration."""
    config = screen.get_config()
    config.calibration = "calibration.json" if calibrated else "none"
    values = {
        "folder": folder,
        "config": config,
        "description": {},
        "records": records,
        "runs": [],
        "summary": {"tokens_trained": 100, "training_runs": len(records)},
        "promotion": None,
        "cards": {},
        "calibration": CALIBRATION if calibrated else None,
    }
    return History(**values | fields)


def write_folder(folder, records, telemetry=None):
    """Writes a run folder of these records that commands can read."""
    description = {"config": screen.get_config().to_dict(), "versions": {}, "device": {}}
    (folder / "telemetry").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(description | {"fingerprints": {}}))
    archive.append(folder / "archive.jsonl", records)
    for name, columns in (telemetry or {}).items():
        save(folder, name, columns)
    return folder


def save(folder, name, columns):
    """Writes the telemetry of one run."""
    (folder / "telemetry").mkdir(exist_ok=True)
    np.savez(folder / "telemetry" / f"{name}.npz", **columns)


def make_columns(gate, **columns):
    """Returns telemetry with this gate, the annealing preset's actuators, and idle sensors."""
    gate = np.asarray(gate, np.float64)
    control = ANNEALING.control
    poles = zip(Actuators._fields, control.aggressive, control.conservative, strict=True)
    own = {name: low + gate * (high - low) for name, low, high in poles}
    sensors = dict.fromkeys(Sensors._fields, np.zeros(len(gate)))
    sensors["step_fraction"] = np.arange(len(gate)) / len(gate)
    recorded = {"loss": 1 - gate, "grad_norm": 1 + gate, "validation_bpb": np.zeros(0)}
    recorded["validation_step"] = np.zeros(0, int)
    return sensors | {"gate": gate} | own | recorded | columns
