"""What figures are made of: looks, traces and axes as the data that `report.js` hands to Plotly.

A colour is the name of a CSS variable, '--best', so that one figure serves light and dark pages.
Whatever a colour tells, a dash, a marker or a label tells too; a caption says the same in words.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from nanoevolve_jax.evidence.statistics import Interval
from nanoevolve_jax.execution.json_files import finite_or_null

_DIGITS = 6  # significant, of a number in a figure
BASELINE = {"color": "--baseline", "dash": "dash", "symbol": "square"}
REFERENCE = {"color": "--other", "dash": "dot", "symbol": "diamond"}
BEST = {"color": "--best", "dash": "solid", "symbol": "circle"}
UNREAD = {"color": "--soft", "dash": "dot", "symbol": "circle-open"}
MANY = (  # for lines of one kind: every pair differs in colour, and neighbours in dash
    ("--best", "solid"),
    ("--other", "dash"),
    ("--good", "dot"),
    ("--pink", "dashdot"),
    ("--gold", "longdash"),
    ("--ink", "longdashdot"),
)


class Chart(NamedTuple):
    """A figure."""

    name: str  # of its element
    title: str
    caption: str  # what it shows, for those who cannot see it
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int = 300  # pixels


def numbers(values: Iterable[float]) -> list[float | None]:
    """Numbers with six digits; null for what is not finite."""
    rounded = [float(f"{x:.{_DIGITS}g}") for x in np.asarray(values, np.float64)]
    return finite_or_null(rounded)


def plain(text: str) -> str:
    """Text as Plotly shows it as it is: its labels may hold tags otherwise."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def line(x, y, name: str, look: Mapping[str, str], *, markers: bool = False) -> dict[str, Any]:
    trace = {
        "type": "scatter",
        "mode": "lines+markers" if markers else "lines",
        "name": plain(name),
        "x": numbers(x),
        "y": numbers(y),
        "line": {"color": look["color"], "dash": look["dash"], "width": 2},
    }
    marker = {"color": look["color"], "symbol": look["symbol"], "size": 7} if markers else {}
    return trace | ({"marker": marker} if markers else {})


def shaded(x, low, high, look: Mapping[str, str]) -> dict[str, Any]:
    """A filled band, out along its upper edge and back along the lower one."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": numbers([*x, *x[::-1]]),
        "y": numbers([*high, *low[::-1]]),
        "fill": "toself",
        "fillcolor": f"{look['color']}-band",
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def titled(x: str, y: str, **more: Any) -> dict[str, Any]:
    layout = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    return layout | more


def rule(value: float, *, axis: str, dash: str = "solid", color: str = "--soft") -> dict[str, Any]:
    """A straight line across the whole figure at a value of one axis."""
    other = "y" if axis == "x" else "x"
    return {
        "type": "line",
        f"{axis}0": value,
        f"{axis}1": value,
        f"{other}0": 0,
        f"{other}1": 1,
        f"{other}ref": "paper",
        "line": {"color": color, "width": 1, "dash": dash},
        "layer": "below",
    }


def interval_traces(
    found: Mapping[str, Interval], look: Mapping[str, str], *, spread: bool = True, name: str = ""
) -> dict[str, Any]:
    """Means with their intervals, a row each, the first one on top."""
    error = {
        "type": "data",
        "symmetric": False,
        "array": numbers([i.high - i.mean for i in found.values()]),
        "arrayminus": numbers([i.mean - i.low for i in found.values()]),
        "color": look["color"],
        "thickness": 1.5,
        "width": 4,
    }
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": numbers([i.mean for i in found.values()]),
        "y": [plain(row) for row in found],
        "marker": {"color": look["color"], "symbol": look["symbol"], "size": 9},
        **({"error_x": error} if spread else {}),
    }


def row_axes(rows: Iterable[str], title: str, shapes: list[dict[str, Any]]) -> dict[str, Any]:
    """The layout of a figure with a named row for each thing."""
    names = [plain(row) for row in rows]
    axis = {"categoryorder": "array", "categoryarray": names[::-1], "automargin": True}
    span = [-0.6, len(names) - 0.4]
    return {
        "xaxis": {"title": {"text": title}},
        "yaxis": axis | {"type": "category", "range": span},
        "shapes": shapes,
    }


def height_of(rows: int) -> int:
    return 90 + 32 * max(rows, 4)
