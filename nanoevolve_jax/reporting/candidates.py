"""Every candidate as a report keeps it: small enough that thousands of them stay usable."""

import base64
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.execution.json_files import finite_or_null
from nanoevolve_jax.policy.spec import FIELDS, Actuators, Sensors, get_field
from nanoevolve_jax.policy.spec_json import field_to_json
from nanoevolve_jax.reporting.history import History
from nanoevolve_jax.reporting.operators import gain_over_parent
from nanoevolve_jax.reporting.words import origin

COLUMNS = ("loss", "grad_norm", "gate", *Actuators._fields, *Sensors._fields)
TELEMETRY_BYTES = 4_000_000  # of all candidates together, before base64
MOST_POINTS = 200  # of one column
_LEVELS = 2**16 - 1  # the last one means that there is no number
_CURVE_POINTS = 20


def candidates(history: History) -> dict[str, Any]:
    """What the page needs of the candidates, as JSON.

    A spec is kept as its differences from the baseline; `paths` and `values` say what these are
    differences from. `columns` names the telemetry.
    """
    records = history.records
    by_id = {record.id: record for record in records}
    paths = [*FIELDS, *(f"recipe.{name}" for name in history.config.recipe)]
    values = _values(history.baseline, history)
    points = points_each(len(records))
    return {
        "paths": paths,
        "values": values,
        "columns": COLUMNS,
        "points": points,
        "all": [_candidate(record, by_id, values, history, points) for record in records],
    }


def points_each(count: int) -> int:
    """Points a column of telemetry may have when so many candidates share the room."""
    fits = TELEMETRY_BYTES // (count * len(COLUMNS) * np.uint16().nbytes)
    return min(max(fits, 2), MOST_POINTS)


def _values(record: Record, history: History) -> list[Any]:
    """Every field of the spec, then every field of the recipe."""
    recipe = history.config.recipe.to_dict() | (record.recipe or {})
    spec = [field_to_json(path, get_field(record.spec, path)) for path in FIELDS]
    return [*spec, *(recipe[name] for name in history.config.recipe)]


def _candidate(
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
    gain = baseline.merit.val_bpb - record.merit.val_bpb
    over_parent = gain_over_parent(record, by_id) if record.parent_id else math.nan
    document = {
        "id": record.id,
        "parent": record.parent_id,
        "generation": record.generation,
        "operator": record.operator,
        "origin": origin(record),
        "control": record.recipe is not None,
        "status": record.status,
        "failure": record.failure,
        "own": [[i, x] for i, x in enumerate(own) if x != usual[i]],
        "seeds": record.seeds,
        "bpb": record.val_bpb,
        "gains": [known.get(s, math.nan) - x for s, x in _pairs(record)],
        "gain": gain,
        "over_parent": over_parent,
        "cost": record.cost / baseline.cost,
        "score": record.score,
        "pareto": record.pareto,
        "curve": _curve(telemetry),
        "telemetry": telemetry and pack(telemetry, points),
    }
    return finite_or_null(document)


def _pairs(record: Record):
    return zip(record.seeds, record.val_bpb, strict=True)


def _curve(telemetry: Mapping[str, np.ndarray] | None) -> list[list[float]]:
    """The validation curve, [[step, bpb], ...]."""
    if telemetry is None:
        return []
    steps, bpb = telemetry["validation_step"], telemetry["validation_bpb"]
    kept = spaced(len(steps), _CURVE_POINTS)
    return [[int(steps[i]), float(f"{bpb[i]:.6g}")] for i in kept]


def spaced(count: int, points: int) -> np.ndarray:
    """At most `points` indices of `count`, evenly spaced, the first and the last among them.

    Returns:
      int64[min(count, points)], ascending.
    """
    points = min(count, points)
    if points < 2:
        return np.arange(points)
    return np.arange(points) * (count - 1) // (points - 1)


def pack(columns: Mapping[str, np.ndarray], points: int) -> dict[str, Any]:
    """Telemetry in 16 bits a number; `report.js` unpacks it when it is looked at.

    Args:
      columns: float[steps] by column, `COLUMNS` among them.
      points: of each column at most.

    Returns:
      `steps` and `points`, and `data`, base64 of little-endian float32 lows and spans, one a
      column, then uint16[columns, points]: a number is low + span * level / 65534, and level
      65535 is none.
    """
    steps = len(columns["loss"])
    kept = spaced(steps, points)
    table = np.stack([np.asarray(columns[name], np.float64)[kept] for name in COLUMNS])
    finite = np.isfinite(table)
    with np.errstate(over="ignore"):
        finite &= np.isfinite(table.astype(np.float32))  # spans are kept in 32 bits
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
