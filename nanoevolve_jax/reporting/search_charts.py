"""Figures of a search: its front, and what each operator gained."""

from collections.abc import Mapping, Sequence
from typing import Any

from nanoevolve_jax.evidence.score import Merit
from nanoevolve_jax.evidence.statistics import Interval
from nanoevolve_jax.reporting.chart import (
    BEST,
    UNREAD,
    Chart,
    height_of,
    interval_traces,
    numbers,
    plain,
    row_axes,
    rule,
    titled,
)
from nanoevolve_jax.reporting.operators import Operator


def front(merits: Mapping[str, Merit], on_front: Sequence[str], baseline: str) -> list[Chart]:
    """Loss against cost, and loss against instability; costs in those of the baseline."""
    cost = {name: merit.cost / merits[baseline].cost for name, merit in merits.items()}
    shake = {name: merit.instability for name, merit in merits.items()}
    label = "those on the front have names" if len(on_front) <= _NAMED else "hover for names"
    if len(merits) - len(on_front) > _DRAWN:
        label += f"; off the front the {_DRAWN} with the lowest loss are drawn"
    charts = []
    for name, title, x, words in (
        ("front_cost", "Loss and cost", cost, "FLOPs of a step, over the baseline's"),
        ("front_instability", "Loss and instability", shake, "largest rise of the loss, nats"),
    ):
        caption = (
            f"Validation bits per byte against {words}; lower left is better. Diamonds are on the "
            f"front, over all three; circles are not; {label}."
        )
        data = _front_traces(merits, x, on_front, baseline)
        layout = titled(words, "validation, bits per byte", showlegend=True)
        charts.append(Chart(name, title, caption, data, layout, height=360))
    return charts


_DRAWN = 800  # candidates off the front that are drawn: those with the lowest loss
_NAMED = 12  # points of a front that have room for their names
_CORNERS = ("middle right", "middle left", "top center", "bottom center")  # where names stand


def _front_traces(
    merits: Mapping[str, Merit], x: Mapping[str, float], on_front: Sequence[str], baseline: str
) -> list[dict[str, Any]]:
    front = set(on_front)
    others = sorted(
        (n for n in merits if n not in front and n != baseline), key=lambda n: merits[n].val_bpb
    )
    groups = {
        "not on it": others[:_DRAWN],
        "on the front": [n for n in on_front if n != baseline],
        "baseline": [baseline],
    }
    looks = {
        "not on it": {"color": "--soft", "symbol": "circle-open", "size": 7, "opacity": 0.7},
        "on the front": {"color": "--best", "symbol": "diamond", "size": 11},
        "baseline": {"color": "--baseline", "symbol": "square", "size": 11},
    }
    few = len(on_front) <= _NAMED

    def trace(kind: str, names: list[str]) -> dict[str, Any]:
        named = kind == "baseline" or (kind == "on the front" and few)
        return {
            "type": "scatter",
            "mode": "markers+text" if named else "markers",
            "name": kind,
            "x": numbers([x[n] for n in names]),
            "y": numbers([merits[n].val_bpb for n in names]),
            "text": [plain(n) for n in names],
            "textposition": [_CORNERS[i % len(_CORNERS)] for i in range(len(names))],
            "hovertemplate": "%{text}<br>%{y} bpb<br>%{x}<extra></extra>",
            "marker": looks[kind],
            "cliponaxis": False,
        }

    return [trace(kind, names) for kind, names in groups.items() if names]


def operator_gains(rows: Sequence[Operator]) -> Chart:
    """Mean gain over the parent, an operator a row."""
    usable = [row for row in rows if row.gain is not None]
    several = {row.name: row.gain for row in usable if row.interval}
    single = {row.name: row.gain for row in usable if not row.interval}
    data = []
    if several:
        data.append(interval_traces(several, BEST, name="mean, 95 % interval"))
    if single:
        data.append(interval_traces(single, UNREAD, spread=False, name="one child, no interval"))
    layout = row_axes(
        [r.name for r in usable], "gain over the parent, bits per byte", [rule(0.0, axis="x")]
    )
    layout["xaxis"]["range"] = _reach([row.gain for row in usable])
    return Chart(
        "operators",
        "Gain over the parent",
        "Mean of the parent's minus the child's bits per byte in screening; above 0 children are "
        "better than their parents. An interval that leaves the figure goes on; the table has its "
        "ends.",
        data,
        layout | {"showlegend": True},
        height=height_of(len(usable)) + 30,
    )


def _reach(found: Sequence[Interval]) -> list[float]:
    """A range that holds all means, and intervals as long as they leave the means room."""
    low, high = min(0.0, *(i.mean for i in found)), max(0.0, *(i.mean for i in found))
    room = max(high - low, 1e-6)
    ends = min(i.low for i in found), max(i.high for i in found)
    return [max(ends[0], low - room) - 0.1 * room, min(ends[1], high + room) + 0.1 * room]
