"""Where an exported policy comes from, in words and as JSON."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nanoevolve_jax.policy.certified import Code
from nanoevolve_jax.policy.spec import OptimizerSpec
from nanoevolve_jax.policy.spec_json import spec_to_json

UNTESTED = "nothing is confirmed: no evidence card says that it is better"


class Compared(NamedTuple):
    """What a policy was compared with."""

    id: str
    tuned: bool
    val_bpb: float  # mean over the policy's seeds


class Origin(NamedTuple):
    """What is known of a policy besides its spec."""

    id: str
    lineage: str  # 'nanochat, then annealing, then ns_steps 5 -> 4'
    claim: str = UNTESTED  # what was found about it, as a clause
    level: int | None = None  # on the win ladder; None: there is no card
    val_bpb: float = math.nan  # mean over `seeds`; NaN: it was not trained
    seeds: int = 0
    reference: Compared | None = None
    trained_with: Mapping[str, Any] | None = None  # see `reporting.policies.trained_with`


def in_sentences(origin: Origin) -> list[str]:
    """What a reader of an exported file should know of the policy."""
    found = [f"Lineage: {origin.lineage}."]
    reference, trained = origin.reference, origin.trained_with
    if reference is not None and math.isfinite(origin.val_bpb):
        seeds = "1 seed" if origin.seeds == 1 else f"{origin.seeds} seeds"
        against = (
            "it is what others were compared with"
            if reference.id == origin.id
            else f"{reference.val_bpb:.4f} for {reference.id}"
        )
        tuning = "tuned" if reference.tuned else "not tuned"
        found.append(f"Validation: {origin.val_bpb:.4f} bpb on {seeds}; {against}, {tuning}.")
    if trained is not None:
        found.append(
            f"Trained for {trained['steps']:,} steps of {trained['batch_tokens']:,} tokens on a "
            f"model of width {trained['width']}, with a peak learning rate of "
            f"{trained['matrix_lr']:.4g} and a weight decay of {trained['weight_decay']:.4g} that "
            "falls to 0."
        )
    level = "" if origin.level is None else f" (win level {origin.level})"
    return [*found, f"Evidence: {origin.claim}{level}."]


def to_document(spec: OptimizerSpec, origin: Origin, code: Code | None = None) -> dict[str, Any]:
    """The JSON form: `load_spec` and `optimizer` read it, unless it has code in it."""
    reference = origin.reference
    functions = code.functions if code else ()
    sources = {f.slot: {"certificate": f.id, "source": f.source} for f in functions}
    return ({"code": sources} if sources else {}) | {
        "id": origin.id,
        "lineage": origin.lineage,
        "spec": spec_to_json(spec),
        "val_bpb": origin.val_bpb if math.isfinite(origin.val_bpb) else None,
        "seeds": origin.seeds,
        "compared_with": None
        if reference is None
        else reference._asdict()
        | {"val_bpb": reference.val_bpb if math.isfinite(reference.val_bpb) else None},
        "evidence": origin.claim,
        "level": origin.level,
        "trained_with": None if origin.trained_with is None else dict(origin.trained_with),
    }


def origin_from_file(path: Path) -> Origin:
    """What a JSON file with a spec says of itself: an exported one knows its lineage."""
    document = json.loads(path.read_text(encoding="utf-8"))
    said = {name: document.get(name) for name in ("id", "lineage")}
    name = said["id"] if isinstance(said["id"], str) else path.stem
    lineage = said["lineage"] if isinstance(said["lineage"], str) else f"the spec of {path.name}"
    return Origin(name, lineage)
