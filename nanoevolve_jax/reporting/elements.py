"""Building blocks of the report: figures made with Plotly, tables and sections.

Figures have the colours of a light page; `report.js` replaces them by those of the reader's theme.
Each line also differs from the others in its dash, marker or label, and a caption describes each
figure.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from plotly import graph_objects as go

from nanoevolve_jax.evidence.statistics import Interval
from nanoevolve_jax.execution.json_files import finite_or_null

_DIGITS = 6  # significant digits of numbers in a figure
# Colours of the light theme by the names of their variables in report.css.
COLORS = {
    "best": "#0072b2",
    "other": "#b84a00",
    "good": "#00795a",
    "pink": "#a34a80",
    "gold": "#8a6d00",
    "ink": "#1c2127",
    "soft": "#5d6772",
    "baseline": "#4d5661",
    "best-band": "rgba(0, 114, 178, 0.17)",
    "other-band": "rgba(184, 74, 0, 0.15)",
    "baseline-band": "rgba(77, 86, 97, 0.15)",
    "soft-band": "rgba(93, 103, 114, 0.25)",
}


class Look(NamedTuple):
    """Appearance of a line and its markers."""

    color: str  # key of COLORS
    dash: str = "solid"
    symbol: str = "circle"

    def line(self) -> dict[str, Any]:
        """Returns the `line` of a trace."""
        return {"color": COLORS[self.color], "dash": self.dash, "width": 2}

    def marker(self, size: int) -> dict[str, Any]:
        """Returns the `marker` of a trace."""
        return {"color": COLORS[self.color], "symbol": self.symbol, "size": size}


BASELINE = Look("baseline", "dash", "square")
REFERENCE = Look("other", "dot", "diamond")
BEST = Look("best")
UNREAD = Look("soft", "dot", "circle-open")
LOOKS = (  # for several lines of one kind; neighbours differ in colour and dash
    Look("best", "solid", "circle"),
    Look("other", "dash", "diamond"),
    Look("good", "dot", "square"),
    Look("pink", "dashdot", "cross"),
    Look("gold", "longdash", "triangle-up"),
    Look("ink", "longdashdot", "x"),
)

# Figures -----------------------------------------------------------------------------------


class Chart(NamedTuple):
    """A figure with its title and caption."""

    name: str  # id of its HTML element
    title: str
    caption: str  # also for readers who cannot see the figure
    data: Sequence[go.Scatter]
    layout: go.Layout
    height: int = 300  # pixels

    def to_json(self) -> dict[str, Any]:
        """Returns the figure as JSON values for Plotly.js."""
        traces = [trace.to_plotly_json() for trace in self.data]
        return {"data": traces, "layout": self.layout.to_plotly_json()}


def numbers(values: Iterable[float]) -> list[float | None]:
    """Returns numbers rounded to six digits, with None for those that are not finite."""
    rounded = [float(f"{x:.{_DIGITS}g}") for x in np.asarray(values, np.float64)]
    return finite_or_null(rounded)


def plain(text: str) -> str:
    """Escapes text that Plotly would otherwise interpret as tags."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def line(
    x: Iterable[float], y: Iterable[float], name: str, look: Look, *, markers: bool = False
) -> go.Scatter:
    """Returns a line, with markers at its points if wanted."""
    return go.Scatter(
        mode="lines+markers" if markers else "lines",
        name=plain(name),
        x=numbers(x),
        y=numbers(y),
        line=look.line(),
        marker=look.marker(7) if markers else None,
    )


def shaded(x: np.ndarray, low: np.ndarray, high: np.ndarray, look: Look) -> go.Scatter:
    """Returns a filled band between two curves, each float[points]."""
    return go.Scatter(
        mode="lines",
        x=numbers([*x, *x[::-1]]),
        y=numbers([*high, *low[::-1]]),
        fill="toself",
        fillcolor=COLORS[f"{look.color}-band"],
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )


def points(
    x: Iterable[float], y: Iterable[float], names: Sequence[str], unit: str, **options: Any
) -> go.Scatter:
    """Returns points with names that appear under the pointer.

    Args:
      x: Horizontal coordinates.
      y: Vertical coordinates in bits per byte.
      names: Names of the points.
      unit: Unit of x, or ''.
      **options: Further arguments of `go.Scatter`.
    """
    return go.Scatter(
        **{"mode": "markers", "cliponaxis": False} | options,
        x=numbers(x),
        y=numbers(y),
        text=[plain(name) for name in names],
        hovertemplate=f"%{{text}}<br>%{{y}} bpb<br>%{{x}}{unit and f' {unit}'}<extra></extra>",
    )


def axes(x: str, y: str, **layout: Any) -> go.Layout:
    """Returns a layout with titles of both axes."""
    return go.Layout(xaxis={"title": {"text": x}}, yaxis={"title": {"text": y}}, **layout)


def rule(value: float, *, axis: str, dash: str = "solid", color: str = "soft") -> dict[str, Any]:
    """Returns a straight line across the whole figure at a value of one axis."""
    other = "y" if axis == "x" else "x"
    return {
        "type": "line",
        f"{axis}0": value,
        f"{axis}1": value,
        f"{other}0": 0,
        f"{other}1": 1,
        f"{other}ref": "paper",
        "line": {"color": COLORS[color], "width": 1, "dash": dash},
        "layer": "below",
    }


def interval_trace(
    intervals: Mapping[str, Interval], look: Look, *, bars: bool = True, name: str = ""
) -> go.Scatter:
    """Returns means with their intervals, one row each, the first row on top."""
    error = {
        "type": "data",
        "symmetric": False,
        "array": numbers([i.high - i.mean for i in intervals.values()]),
        "arrayminus": numbers([i.mean - i.low for i in intervals.values()]),
        "color": COLORS[look.color],
        "thickness": 1.5,
        "width": 4,
    }
    return go.Scatter(
        mode="markers",
        name=name,
        x=numbers([i.mean for i in intervals.values()]),
        y=[plain(row) for row in intervals],
        marker=look.marker(9),
        error_x=error if bars else None,
    )


def row_axes(
    rows: Iterable[str], title: str, rules: Sequence[Mapping[str, Any]], **layout: Any
) -> go.Layout:
    """Returns the layout of a figure with one named row per item."""
    names = [plain(row) for row in rows]
    return go.Layout(
        xaxis={"title": {"text": title}},
        yaxis={
            "categoryorder": "array",
            "categoryarray": names[::-1],
            "automargin": True,
            "type": "category",
            "range": [-0.6, len(names) - 0.4],
        },
        shapes=rules,
        **layout,
    )


def height_of(rows: int) -> int:
    """Returns the height in pixels of a figure with this number of rows."""
    return 90 + 32 * max(rows, 4)


# Tables and sections -----------------------------------------------------------------------


class Table(NamedTuple):
    """Rows of text; the first column names the row."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False  # whether the reader has to open it
    summary: str = "Numbers"  # label of a folded table


class Group(NamedTuple):
    """Figures that are shown together."""

    title: str | None
    charts: Sequence[Chart]
    small: bool = False  # whether to arrange them in a narrow grid


class Diff(NamedTuple):
    """Difference between two sources."""

    title: str
    sentences: Sequence[str]
    lines: Sequence[tuple[str, str]]  # (kind, text), see `rewritten_code.diff_lines`


class Section(NamedTuple):
    """One section of the page."""

    name: str  # id of its HTML element
    title: str
    sentences: Sequence[str]
    groups: Sequence[Group] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()  # below figures and tables
    diffs: Sequence[Diff] = ()


class Fact(NamedTuple):
    """One of the key figures at the top of the page."""

    name: str
    value: str
    note: str


def interval_text(interval: Interval, form: str, several: bool) -> str:
    """Returns a mean, followed by its interval if several values produced it."""
    if not several:
        return f"{interval.mean:{form}}"
    return f"{interval.mean:{form}} ({interval.low:{form}} to {interval.high:{form}})"
