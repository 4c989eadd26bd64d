"""Candidates as data: one in detail, all of them in compact form, and the gain of each operator."""

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nanoevolve_jax.evidence.page import sentence
from nanoevolve_jax.evidence.statistics import Interval, mean_interval
from nanoevolve_jax.evolution import tournament
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.execution.json_files import finite_or_null
from nanoevolve_jax.policy.canonical import unread_fields
from nanoevolve_jax.policy.spec import (
    FIELDS,
    NANOCHAT,
    Actuators,
    OptimizerSpec,
    Sensors,
    get_field,
)
from nanoevolve_jax.policy.spec_json import field_to_json, spec_to_json
from nanoevolve_jax.reporting.descriptions import origin
from nanoevolve_jax.reporting.explanation import explain
from nanoevolve_jax.reporting.history import History
from nanoevolve_jax.reporting.rewritten_code import rewritten_functions
from nanoevolve_jax.reporting.summary import row

COLUMNS = ("loss", "grad_norm", "gate", *Actuators._fields, *Sensors._fields)
TELEMETRY_BYTES = 4_000_000  # limit for all candidates together, before base64
MAX_POINTS = 200  # per column
_LEVELS = 2**16 - 1  # the last level stands for a missing number
_CURVE_POINTS = 20
_SURVIVED = ("survivor", "promoted", "winner", "retuned_baseline")

# One candidate in detail -------------------------------------------------------------------


def candidate_details(history: History, record: Record) -> dict[str, Any]:
    """Returns everything about one candidate as JSON values; numbers may be infinite or NaN."""
    card = history.cards.get(record.id)
    chain = tournament.lineage(history.records, record.id)
    has_code = bool(record.code and record.code["certificates"])
    return row(history, record) | {
        "evidence": card and sentence(card),
        "level": card and card["level"],
        "lineage": [{"id": ancestor.id, "origin": origin(ancestor)} for ancestor in chain],
        "explanation": explain(history, record),
        "code": rewritten_functions(history.records, record),
        "runs": paired_runs(history, record),
        "failure": record.failure,
        "recipe": record.recipe,
        "fields": spec_fields(record.spec, has_code=has_code),
        "spec": spec_to_json(record.spec),
    }


def paired_runs(history: History, record: Record) -> list[dict[str, Any]]:
    """Returns a candidate's runs beside the baseline's runs on the same seeds, in bpb.

    Confirmation runs have the full horizon, and each arm has its own learning rate.
    """
    baseline = dict(zip(history.baseline.seeds, history.baseline.val_bpb, strict=True))
    runs = [
        _pair("promotion" if i else "screening", seed, baseline.get(seed, math.nan), bpb)
        for i, (seed, bpb) in enumerate(zip(record.seeds, record.val_bpb, strict=True))
    ]
    card = history.cards.get(record.id)
    tested = card["confirmation"] if card else None
    if card and tested and card["seeds"]:
        pairs = zip(card["seeds"], tested["baseline_bpb"], tested["winner_bpb"], strict=True)
        runs += [_pair("confirmation", seed, _number(a), _number(b)) for seed, a, b in pairs]
    return runs


def _pair(stage: str, seed: int, baseline: float, own: float) -> dict[str, Any]:
    gain = baseline - own
    return {"stage": stage, "seed": seed, "baseline_bpb": baseline, "bpb": own, "gain": gain}


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def spec_fields(spec: OptimizerSpec, *, has_code: bool = False) -> list[dict[str, Any]]:
    """Returns every field of a spec beside NanoChat's value, and whether it has an effect.

    Args:
      spec: Spec of a candidate.
      has_code: Whether functions are rewritten. They receive the fields and may read any of them.
    """
    unread = set() if has_code else unread_fields(spec)
    return [
        {
            "field": path,
            "nanochat": field_to_json(path, get_field(NANOCHAT, path)),
            "here": field_to_json(path, get_field(spec, path)),
            "read": path not in unread,
        }
        for path in FIELDS
    ]


# All candidates in compact form ------------------------------------------------------------


def compact_candidates(history: History) -> dict[str, Any]:
    """Returns all candidates for the page, small enough for thousands of them.

    Each spec is stored as its differences from the baseline.

    Returns:
      JSON values: `paths` and `values` of the baseline's fields, `columns` of the telemetry, at
      most `points` per column, and the candidates under `all`.
    """
    records = history.records
    by_id = {record.id: record for record in records}
    paths = [*FIELDS, *(f"recipe.{name}" for name in history.config.recipe)]
    values = _values(history.baseline, history)
    points = points_per_column(len(records))
    return {
        "paths": paths,
        "values": values,
        "columns": COLUMNS,
        "points": points,
        "all": [_compact(record, by_id, values, history, points) for record in records],
    }


def points_per_column(candidates: int) -> int:
    """Returns how many points per column of telemetry fit for this number of candidates."""
    fitting = TELEMETRY_BYTES // (candidates * len(COLUMNS) * np.uint16().nbytes)
    return min(max(fitting, 2), MAX_POINTS)


def _values(record: Record, history: History) -> list[Any]:
    """Returns every field of the spec, then every field of the recipe."""
    recipe = history.config.recipe.to_dict() | (record.recipe or {})
    spec = [field_to_json(path, get_field(record.spec, path)) for path in FIELDS]
    return [*spec, *(recipe[name] for name in history.config.recipe)]


def _compact(
    record: Record,
    by_id: Mapping[str, Record],
    usual: list[Any],
    history: History,
    points: int,
) -> dict[str, Any]:
    own = _values(record, history)
    telemetry = history.telemetry(record.id)
    baseline = history.baseline
    known = dict(zip(baseline.seeds, baseline.val_bpb, strict=True))
    pairs = zip(record.seeds, record.val_bpb, strict=True)
    document = {
        "id": record.id,
        "parent": record.parent_id,
        "generation": record.generation,
        "operator": record.operator,
        "origin": origin(record),
        "control": record.recipe is not None,
        "status": record.status,
        "failure": record.failure,
        "own": [[i, value] for i, value in enumerate(own) if value != usual[i]],
        "seeds": record.seeds,
        "bpb": record.val_bpb,
        "gains": [known.get(seed, math.nan) - bpb for seed, bpb in pairs],
        "gain": baseline.merit.val_bpb - record.merit.val_bpb,
        "over_parent": gain_over_parent(record, by_id) if record.parent_id else math.nan,
        "cost": record.cost / baseline.cost,
        "score": record.score,
        "pareto": record.pareto,
        "curve": _curve(telemetry),
        "telemetry": telemetry and pack(telemetry, points),
    }
    return finite_or_null(document)


def _curve(telemetry: Mapping[str, np.ndarray] | None) -> list[list[float]]:
    """Returns the validation curve, [[step, bpb], ...]."""
    if telemetry is None:
        return []
    steps, bpb = telemetry["validation_step"], telemetry["validation_bpb"]
    return [[int(steps[i]), float(f"{bpb[i]:.6g}")] for i in spaced(len(steps), _CURVE_POINTS)]


def spaced(count: int, points: int) -> np.ndarray:
    """Returns at most `points` evenly spaced indices below `count`, with the first and the last.

    Returns:
      int64[min(count, points)], ascending.
    """
    points = min(count, points)
    if points < 2:
        return np.arange(points)
    return np.arange(points) * (count - 1) // (points - 1)


def pack(columns: Mapping[str, np.ndarray], points: int) -> dict[str, Any]:
    """Packs telemetry with 16 bits per number; `report.js` unpacks it when it is shown.

    Args:
      columns: Telemetry that includes `COLUMNS`, float[steps] by column.
      points: Largest number of points per column.

    Returns:
      `steps`, `points` and `data`. The data is base64 of little-endian float32[columns] minima and
      float32[columns] ranges, then uint16[columns, points] levels. A number is
      minimum + range * level / 65534; level 65535 marks a missing number.
    """
    steps = len(columns["loss"])
    kept = spaced(steps, points)
    table = np.stack([np.asarray(columns[name], np.float64)[kept] for name in COLUMNS])
    finite = np.isfinite(table)
    with np.errstate(over="ignore"):
        finite &= np.isfinite(table.astype(np.float32))  # because ranges are stored as float32
    low = np.where(finite, table, np.inf).min(1, initial=np.inf)
    high = np.where(finite, table, -np.inf).max(1, initial=-np.inf)
    low, high = (np.where(np.isfinite(x), x, 0.0) for x in (low, high))
    span = np.where(high > low, high - low, 1.0)
    shares = np.where(finite, (table - low[:, None]) / span[:, None], 0.0)
    levels = np.where(finite, np.rint(shares * (_LEVELS - 1)), _LEVELS)
    data = b"".join(
        [low.astype("<f4").tobytes(), span.astype("<f4").tobytes(), levels.astype("<u2").tobytes()]
    )
    return {"steps": steps, "points": len(kept), "data": base64.b64encode(data).decode()}


# Operators ---------------------------------------------------------------------------------


class Operator(NamedTuple):
    """Results of the children of one mutation operator."""

    name: str
    tried: int
    failed: int
    survived: int  # children among the survivors at the end of their generation
    promoted: int | None  # children that got fresh seeds; None without a promotion
    trained: int  # children that `gain` is computed from
    gain: Interval | None  # parent minus child in screening, bpb; None if every child failed
    interval: bool  # whether at least two children make the interval meaningful


def operators(records: Sequence[Record], entrants: Sequence[str] | None) -> list[Operator]:
    """Returns one row per operator, the most used first, including mutations of the recipe.

    A child is compared with its parent on the same screening seed. Failed children are counted and
    have no gain.

    Args:
      records: Records of the search, including every parent.
      entrants: Ids that got fresh seeds in the promotion; None without a promotion.
    """
    by_id = {record.id: record for record in records}
    children: dict[str, list[Record]] = {}
    for record in records:
        if record.operator is not None:
            children.setdefault(record.operator, []).append(record)
    rows = [_operator(name, own, by_id, entrants) for name, own in children.items()]
    return sorted(rows, key=lambda row: (-row.tried, row.name))


def gain_over_parent(record: Record, by_id: Mapping[str, Record]) -> float:
    """Returns the parent's bpb minus the child's on the screening seed; NaN if either failed."""
    return by_id[record.parent_id or ""].merit.val_bpb - record.merit.val_bpb


def _operator(
    name: str, own: Sequence[Record], by_id: Mapping[str, Record], entrants: Sequence[str] | None
) -> Operator:
    differences = [gain_over_parent(record, by_id) for record in own]
    gains = [gain for gain in differences if math.isfinite(gain)]
    return Operator(
        name=name,
        tried=len(own),
        failed=sum(record.failure is not None for record in own),
        survived=sum(record.status in _SURVIVED for record in own),
        promoted=None if entrants is None else sum(r.id in set(entrants) for r in own),
        trained=len(gains),
        gain=mean_interval(gains) if gains else None,
        interval=len(gains) > 1,
    )
