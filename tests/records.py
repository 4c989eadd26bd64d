"""Archive records of trained and failed candidates, made without training."""

import math

from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.policy.spec import NANOCHAT


def make_record(name="nanochat", *, score=0.0, bpb=2.0, spec=NANOCHAT, generation=0, **fields):
    """Returns the record of a candidate that was trained on one seed."""
    values = {
        "id": name,
        "parent_id": None if name == "nanochat" else "nanochat",
        "generation": generation,
        "operator": None if name == "nanochat" else "adjust_gate_bias",
        "change": None if name == "nanochat" else "control.bias -0.5 -> 0.25",
        "spec": spec,
        "recipe": None,
        "status": "rejected",
        "failure": None,
        "stage": "screen",
        "seeds": [0],
        "val_bpb": [bpb],
        "train_loss": [3.5],
        "steps": [6],
        "instability": [0.01],
        "score": score,
        "cost": 1e6,
        "pareto": False,
    }
    return Record(**values | fields)


def make_dead(name, **fields):
    """Returns the record of a candidate that failed at step 3."""
    nothing = {"val_bpb": [math.nan], "train_loss": [math.nan], "instability": [math.nan]}
    failure = {"reason": "non-finite loss", "step": 3}
    return make_record(
        name, **{"score": -math.inf, "failure": failure, "steps": [3], **nothing, **fields}
    )
