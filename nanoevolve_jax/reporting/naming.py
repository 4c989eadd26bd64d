"""What a reader may call a spec: a preset, a JSON file, a candidate of a run folder."""

import difflib
import json
from pathlib import Path

from nanoevolve_jax.evidence.comparison import Arm
from nanoevolve_jax.evolution.promotion import arm_of
from nanoevolve_jax.policy.spec import OptimizerSpec, presets_on
from nanoevolve_jax.policy.spec_json import SpecError, load_spec
from nanoevolve_jax.reporting.history import History, read_history


def named_arm(name: str, baseline: OptimizerSpec, history: History | None = None) -> Arm:
    """The spec of a name, and the recipe fields that a control changes.

    Args:
      name: of a preset, of a JSON file with a spec or a record, 'DIR:ID', or of a candidate of
        `history`.
      baseline: what presets stand on.
      history: whose ids are names too, and go first.

    Raises:
      SpecError: if there is nothing of that name, or the file holds no valid spec.
      ArchiveError: if DIR is no run folder, or holds no such ID.
    """
    ids = [] if history is None else [record.id for record in history.records]
    if name in ids:
        return arm_of(history.record(name), history.folder)
    presets = presets_on(baseline)
    if name in presets:
        return Arm(name, presets[name], {})
    if Path(name).is_file() or name.endswith(".json"):
        return Arm(name, _from_file(name), {})
    folder, colon, candidate = name.rpartition(":")
    if colon and folder:
        found = read_history(Path(folder), "spec's folder")
        return arm_of(found.record(candidate), found.folder)._replace(id=name)
    near = difflib.get_close_matches(name, [*presets, *ids], n=3) or [*presets]
    raise SpecError(
        f"spec is {name!r}; allowed: a preset, a JSON file, DIR:ID"
        f"{' or an id' if ids else ''}, such as {', '.join(near)}"
    )


def _from_file(name: str) -> OptimizerSpec:
    spec = load_spec(name)
    document = json.loads(Path(name).read_text(encoding="utf-8"))
    if document.get("recipe"):
        raise SpecError(
            f"spec is {name!r}, a control, whose recipe is no part of its spec; allowed: DIR:ID"
        )
    return spec
