"""Policies by name: where one comes from, and how two of them differ."""

import difflib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from nanoevolve_jax.errors import must
from nanoevolve_jax.evidence.comparison import Arm
from nanoevolve_jax.evidence.page import sentence
from nanoevolve_jax.evolution.archive import ArchiveError, Record
from nanoevolve_jax.evolution.campaign import ARCHIVE
from nanoevolve_jax.evolution.library import code_of
from nanoevolve_jax.evolution.promotion import arm_of
from nanoevolve_jax.execution.cost import matrix_shapes
from nanoevolve_jax.execution.settings import make_baseline, make_recipe, make_task, with_recipe
from nanoevolve_jax.exports.forms import Policy
from nanoevolve_jax.exports.origin import Compared, Origin, origin_from_file
from nanoevolve_jax.policy.canonical import canonical, unread_fields
from nanoevolve_jax.policy.slots import is_read
from nanoevolve_jax.policy.spec import FIELDS, PRESETS, OptimizerSpec, get_field, presets_on
from nanoevolve_jax.policy.spec_json import SpecError, field_to_json, load_spec
from nanoevolve_jax.reporting.descriptions import lineage_in_one_line
from nanoevolve_jax.reporting.history import History, read_history
from nanoevolve_jax.reporting.rewritten_code import source_differences
from nanoevolve_jax.reporting.summary import is_uncalibrated

# Names -------------------------------------------------------------------------------------


def named_arm(name: str, baseline: OptimizerSpec, history: History | None = None) -> Arm:
    """Returns the policy with a name, together with the recipe fields that a control changes.

    Args:
      name: Name of a preset, path of a JSON file with a spec or a record, 'DIR:ID', or id of a
        candidate of `history`.
      baseline: Spec that presets are derived from.
      history: Search whose ids are accepted as names; they take precedence.

    Raises:
      SpecError: if nothing has that name, or the file has no valid spec.
      ArchiveError: if DIR is not a run folder, or has no such ID.
    """
    ids = [] if history is None else [record.id for record in history.records]
    if history is not None and name in ids:
        return arm_of(history.record(name), history.folder)
    presets = presets_on(baseline)
    if name in presets:
        return Arm(name, presets[name], {})
    if Path(name).is_file() or name.endswith(".json"):
        return Arm(name, _spec_from_file(name), {})
    folder, colon, candidate = name.rpartition(":")
    if colon and folder:
        other = read_history(Path(folder), "spec's folder")
        return arm_of(other.record(candidate), other.folder)._replace(id=name)
    near = difflib.get_close_matches(name, [*presets, *ids], n=3) or [*presets]
    kinds = f"a preset, a JSON file, DIR:ID{' or an id' if ids else ''}"
    raise SpecError(must("spec", f"be {kinds}, such as {', '.join(near)}", name))


def _spec_from_file(name: str) -> OptimizerSpec:
    spec = load_spec(name)
    document = json.loads(Path(name).read_text(encoding="utf-8"))
    if document.get("recipe"):
        rule = "be given as DIR:ID for a control, whose recipe is not part of its spec"
        raise SpecError(must("spec", rule, name))
    return spec


# Differences -------------------------------------------------------------------------------


def difference(before: Arm, after: Arm) -> dict[str, Any]:
    """Returns the fields, recipe values and rewritten functions in which two policies differ."""
    # Rewritten code may read any field.
    has_code = bool(before.code or after.code)
    unread = set() if has_code else unread_fields(before.spec) & unread_fields(after.spec)
    changed: list[dict[str, Any]] = [
        {
            "field": path,
            "before": field_to_json(path, get_field(before.spec, path)),
            "after": field_to_json(path, get_field(after.spec, path)),
            "read": path not in unread,
        }
        for path in FIELDS
        if get_field(before.spec, path) != get_field(after.spec, path)
    ]
    for name in sorted({*before.recipe, *after.recipe}):
        a, b = before.recipe.get(name), after.recipe.get(name)
        if a != b:
            changed.append({"field": f"recipe.{name}", "before": a, "after": b, "read": True})
    return {
        "before": before.id,
        "after": after.id,
        "same_policy": same_policy(before, after),
        "fields": changed,
        "code": source_differences(before.code, after.code),
    }


def same_policy(a: Arm, b: Arm) -> bool:
    """Returns whether two arms would train identically.

    Specs are compared in canonical form, except where rewritten functions are in use: those may
    read fields that the built-in functions ignore.
    """
    return _identity(a) == _identity(b)


def _identity(arm: Arm) -> tuple[Any, ...]:
    functions = arm.code.functions if arm.code else ()
    called = [(f.slot, f.computation) for f in functions if is_read(f.slot, arm.spec)]
    return arm.spec if called else canonical(arm.spec), arm.recipe, called


# Origins -----------------------------------------------------------------------------------


def find_policy(name: str, folder: Path) -> Policy:
    """Returns a policy by name, to be exported.

    Args:
      name: JSON file with a spec or a record, id of the folder's archive, or name of a preset.
      folder: Run folder.

    Raises:
      SpecError: If the file contains no valid spec.
      ArchiveError: If no policy has that name.
      CertificateError: If its code is missing or was changed.
    """
    path = Path(name)
    if path.is_file() or path.suffix == ".json":
        return Policy(load_spec(path), origin_from_file(path), name)
    preset = None
    if name in PRESETS:
        preset = Policy(PRESETS[name], Origin(name, f"the preset {name}"), "a preset")
    try:
        history = read_history(folder)
    except ArchiveError:
        if preset:
            return preset
        raise
    record = next((record for record in history.records if record.id == name), None)
    if record is not None:
        code = code_of(history.folder, record.code)
        return Policy(record.spec, origin_of(history, record), str(folder), code)
    if preset:
        return preset
    names = [*(record.id for record in history.records), *PRESETS]
    near = difflib.get_close_matches(name, names) or [history.best.id, *PRESETS]
    rule = f"be a JSON file, a preset or an id of {folder / ARCHIVE}, such as {', '.join(near)}"
    raise ArchiveError(must("ID", rule, name))


def origin_of(history: History, record: Record) -> Origin:
    """Returns a candidate's lineage, results and evidence for its exported file."""
    baseline, card = history.baseline, history.cards.get(record.id)
    known = dict(zip(baseline.seeds, baseline.val_bpb, strict=True))
    own = dict(zip(record.seeds, record.val_bpb, strict=True))
    shared = [seed for seed in record.seeds if seed in known]
    origin = Origin(
        id=record.id,
        lineage=lineage_in_one_line(history.records, record.id),
        val_bpb=_mean([own[seed] for seed in shared]),
        seeds=len(shared),
        reference=Compared(
            id=baseline.id,
            tuned=not is_uncalibrated(history),
            val_bpb=_mean([known[seed] for seed in shared]),
        ),
        trained_with=trained_with(history, record),
    )
    if card is None:
        return origin
    return origin._replace(claim=sentence(card).rstrip("."), level=card["level"]["level"])


def trained_with(history: History, record: Record) -> dict[str, Any]:
    """Returns the recipe of a candidate's screening run.

    Learning rates are peak values. Learning rates and the initial weight decay are already scaled
    for the batch size, width and horizon of the run. Fractions are relative to the horizon.
    """
    config = with_recipe(history.config, dict(record.recipe or {}))
    return {
        "corpus": config.data.corpus.partition(":")[0],  # without the path of its files
        "steps": config.train.steps,
        "batch_tokens": config.train.batch_size * config.model.sequence_len,
        "width": config.model.n_embd,
        "layers": config.model.n_layer,
        "momentum": record.spec.momentum,
        "second_moment_beta": record.spec.second_moment_beta,
        **{name: float(value) for name, value in make_recipe(config)._asdict().items()},
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def distinct_arms(
    config: ConfigDict, names: Sequence[str]
) -> tuple[list[Arm], list[dict[str, str]]]:
    """Returns the policies of some names, each once, and which names mean the same policy.

    Args:
      config: Full configuration; presets are built on its baseline.
      names: Names of policies, see `named_arm`.

    Returns:
      The different policies, and for each repeated one a pair of names, `id` and `same_as`.

    Raises:
      SpecError: if a name cannot be used, or there are not two different policies.
      CertificateError: if code was not certified for the matrices of the config's model.
    """
    baseline, matrices = make_baseline(config), matrix_shapes(make_task(config).model)
    arms: list[Arm] = []
    repeated: list[dict[str, str]] = []
    for name in names:
        arm = named_arm(name, baseline)
        if arm.code:
            arm.code.require(matrices)
        same = next((known for known in arms if same_policy(known, arm)), None)
        if same is None:
            arms.append(arm)
        else:
            repeated.append({"id": name, "same_as": same.id})
    if len(names) < 2:
        raise SpecError(
            f"specs must be two or more, each a preset, a JSON file or DIR:ID, got {len(names)}"
        )
    if len(arms) < 2:
        raise SpecError(
            f"specs must include different policies, got {' '.join(names)!r}, all the same policy"
        )
    return arms, repeated
