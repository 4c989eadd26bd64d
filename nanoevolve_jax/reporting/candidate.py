"""One candidate on one page, and two specs side by side."""

import math
from typing import Any

from nanoevolve_jax.evidence.comparison import Arm
from nanoevolve_jax.evidence.page import sentence
from nanoevolve_jax.evolution import tournament
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.policy.canonical import canonical, unread_fields
from nanoevolve_jax.policy.slots import is_read
from nanoevolve_jax.policy.spec import FIELDS, NANOCHAT, OptimizerSpec, get_field
from nanoevolve_jax.policy.spec_json import field_to_json, spec_to_json
from nanoevolve_jax.reporting.explain import explain
from nanoevolve_jax.reporting.history import History
from nanoevolve_jax.reporting.overview import row
from nanoevolve_jax.reporting.rewritten import rewritten, source_differences
from nanoevolve_jax.reporting.words import origin


def candidate(history: History, record: Record) -> dict[str, Any]:
    """What there is to say of a candidate, as JSON has it once what is not finite is null."""
    card = history.cards.get(record.id)
    chain = tournament.lineage(history.records, record.id)
    return row(history, record) | {
        "evidence": card and sentence(card),
        "level": card and card["level"],
        "lineage": [{"id": ancestor.id, "origin": origin(ancestor)} for ancestor in chain],
        "explanation": explain(history, record),
        "code": rewritten(history.records, record),
        "runs": runs(history, record),
        "failure": record.failure,
        "recipe": record.recipe,
        "fields": fields(record.spec, told=bool(record.code and record.code["certificates"])),
        "spec": spec_to_json(record.spec),
    }


def runs(history: History, record: Record) -> list[dict[str, Any]]:
    """Its runs beside the baseline's on the same seeds, stage by stage, bpb.

    Those of a confirmation are at the full horizon, each arm at its own learning rate.
    """
    baseline = dict(zip(history.baseline.seeds, history.baseline.val_bpb, strict=True))
    found = [
        _pair("promotion" if i else "screening", seed, baseline.get(seed, math.nan), bpb)
        for i, (seed, bpb) in enumerate(zip(record.seeds, record.val_bpb, strict=True))
    ]
    card = history.cards.get(record.id)
    tested = card["confirmation"] if card else None
    if tested and card["seeds"]:
        pairs = zip(card["seeds"], tested["baseline_bpb"], tested["winner_bpb"], strict=True)
        found += [_pair("confirmation", seed, _number(a), _number(b)) for seed, a, b in pairs]
    return found


def _pair(stage: str, seed: int, baseline: float, own: float) -> dict[str, Any]:
    gain = baseline - own
    return {"stage": stage, "seed": seed, "baseline_bpb": baseline, "bpb": own, "gain": gain}


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def fields(spec: OptimizerSpec, *, told: bool = False) -> list[dict[str, Any]]:
    """Every field of a spec beside NanoChat's, and whether anything reads it.

    Args:
      spec: of a candidate.
      told: whether functions are rewritten, which are told the fields and may read any.
    """
    unread = set() if told else unread_fields(spec)
    return [
        {
            "field": path,
            "nanochat": field_to_json(path, get_field(NANOCHAT, path)),
            "here": field_to_json(path, get_field(spec, path)),
            "read": path not in unread,
        }
        for path in FIELDS
    ]


def difference(before: Arm, after: Arm) -> dict[str, Any]:
    """Two specs side by side, the recipe fields by which controls differ, and rewritten code."""
    unread = unread_fields(before.spec) & unread_fields(after.spec)
    if before.code or after.code:  # which may read any field
        unread = set()
    changed = [
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
    """Whether two arms would train the same run.

    Rewritten functions may read what built-in ones do not, so there a spec is as it is.
    """
    return _identity(a) == _identity(b)


def _identity(arm: Arm) -> tuple[Any, ...]:
    functions = arm.code.functions if arm.code else ()
    called = [(f.slot, f.computation) for f in functions if is_read(f.slot, arm.spec)]
    return arm.spec if called else canonical(arm.spec), arm.recipe, called
