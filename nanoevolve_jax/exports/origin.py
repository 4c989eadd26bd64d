"""The origin of an exported policy, as sentences and as JSON."""

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
    """The candidate that a policy was compared with."""

    id: str
    tuned: bool
    val_bpb: float  # mean over the seeds of the policy


class Origin(NamedTuple):
    """Facts about the history of a policy."""

    id: str
    lineage: str  # 'nanochat, then annealing, then ns_steps 5 -> 4'
    claim: str = UNTESTED  # result of its confirmation, as a clause
    level: int | None = None  # win level; None without an evidence card
    val_bpb: float = math.nan  # mean over `seeds`; NaN if it was not trained
    seeds: int = 0  # number of seeds that it was trained on
    reference: Compared | None = None
    trained_with: Mapping[str, Any] | None = None  # see `reporting.policies.trained_with`


def in_sentences(origin: Origin) -> list[str]:
    """Returns the sentences about the origin that an exported file contains."""
    sentences = [f"Lineage: {origin.lineage}."]
    reference, recipe = origin.reference, origin.trained_with
    if reference is not None and math.isfinite(origin.val_bpb):
        seeds = "1 seed" if origin.seeds == 1 else f"{origin.seeds} seeds"
        against = (
            "it is the reference of the others"
            if reference.id == origin.id
            else f"{reference.val_bpb:.4f} for {reference.id}"
        )
        tuning = "tuned" if reference.tuned else "not tuned"
        sentences.append(f"Validation: {origin.val_bpb:.4f} bpb on {seeds}; {against}, {tuning}.")
    if recipe is not None:
        sentences.append(
            f"Trained for {recipe['steps']:,} steps of {recipe['batch_tokens']:,} tokens on a "
            f"model of width {recipe['width']}, with a peak learning rate of "
            f"{recipe['matrix_lr']:.4g} and a weight decay of {recipe['weight_decay']:.4g} that "
            "falls to 0."
        )
    level = "" if origin.level is None else f" (win level {origin.level})"
    return [*sentences, f"Evidence: {origin.claim}{level}."]


def to_document(spec: OptimizerSpec, origin: Origin, code: Code | None = None) -> dict[str, Any]:
    """Returns a policy and its origin as a JSON object.

    `load_spec` and `optimizer` accept the object unless it contains code.

    Args:
      spec: Policy of concrete numbers.
      origin: Origin of the policy.
      code: Rewritten functions of the policy, or None.

    Returns:
      The JSON object; numbers that are not finite are null.
    """
    reference = origin.reference
    functions = code.functions if code else ()
    sources = {f.slot: {"certificate": f.id, "source": f.source} for f in functions}
    return ({"code": sources} if sources else {}) | {
        "id": origin.id,
        "lineage": origin.lineage,
        "spec": spec_to_json(spec),
        "val_bpb": _finite(origin.val_bpb),
        "seeds": origin.seeds,
        "compared_with": None
        if reference is None
        else reference._asdict() | {"val_bpb": _finite(reference.val_bpb)},
        "evidence": origin.claim,
        "level": origin.level,
        "trained_with": None if origin.trained_with is None else dict(origin.trained_with),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def origin_from_file(path: Path) -> Origin:
    """Returns the origin of a policy that is read from a JSON file.

    Args:
      path: Path of a JSON file with a spec.

    Returns:
      The id and the lineage in the file. Where these are missing, the name of the file serves.
    """
    document = json.loads(path.read_text(encoding="utf-8"))
    name, lineage = (document.get(key) for key in ("id", "lineage"))
    return Origin(
        name if isinstance(name, str) else path.stem,
        lineage if isinstance(lineage, str) else f"the spec of {path.name}",
    )
