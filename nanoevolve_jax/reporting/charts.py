"""Figures as data: what `report.js` hands to Plotly, and a caption that says the same in words.

A colour is the name of a CSS variable, '--best', so that one figure serves light and dark pages.
Whatever a colour tells, a dash, a marker or a label tells too.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nanoevolve_jax.codegen.campaign.books import Entry
from nanoevolve_jax.evidence.score import Merit
from nanoevolve_jax.evidence.statistics import Interval, mean_interval
from nanoevolve_jax.execution.json_files import finite_or_null
from nanoevolve_jax.reporting.candidates import spaced
from nanoevolve_jax.reporting.operators import Operator
from nanoevolve_jax.reporting.training import Curves, Detectable, Gain, band

_DIGITS = 6  # significant, of a number in a figure
_STEPS = 400  # of a trajectory that are drawn at most
_BASELINE = {"color": "--baseline", "dash": "dash", "symbol": "square"}
_REFERENCE = {"color": "--other", "dash": "dot", "symbol": "diamond"}
_BEST = {"color": "--best", "dash": "solid", "symbol": "circle"}
_UNREAD = {"color": "--soft", "dash": "dot", "symbol": "circle-open"}
_MANY = (  # for lines of one kind: every pair differs in colour, and neighbours in dash
    ("--best", "solid"),
    ("--other", "dash"),
    ("--good", "dot"),
    ("--pink", "dashdot"),
    ("--gold", "longdash"),
    ("--ink", "longdashdot"),
)
_SYMBOLS = ("circle", "diamond", "square", "cross", "triangle-up", "x")


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


def _line(x, y, name: str, look: Mapping[str, str], *, markers: bool = False) -> dict[str, Any]:
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


def _band(x, low, high, look: Mapping[str, str]) -> dict[str, Any]:
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


def _titled(x: str, y: str, **more: Any) -> dict[str, Any]:
    layout = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    return layout | more


# Training ----------------------------------------------------------------------------------


def validation(found: Curves) -> list[Chart]:
    """Validation curves of all arms, and how far the last one is below the one compared with."""
    names = list(found.arms)
    looks = [_BASELINE, *[_REFERENCE] * (len(names) - 2), _BEST]
    seeds = len(found.arms[names[0]])
    data = []
    for name, look in zip(names, looks, strict=False):
        mean, low, high = band(found.arms[name])
        if seeds > 1:
            data.append(_band(found.steps, low, high, look))
        data.append(_line(found.steps, mean, name, look, markers=True))
    how = (
        f"Means over {seeds} seeds; the bands are the 95 % interval of the mean."
        if seeds > 1
        else "One seed, so there is no band: how far seeds lie apart is not known from it."
    )
    first = Chart(
        "curves",
        "Validation loss",
        f"Validation bits per byte over training, runs of {found.stage}. {how}",
        data,
        _titled("step", "validation, bits per byte", showlegend=True),
    )
    best = names[-1]
    if best == found.reference:
        return [first]
    difference = found.arms[found.reference] - found.arms[best]
    mean, low, high = band(difference)
    data = [_line(found.steps, mean, f"{best} over {found.reference}", _BEST, markers=True)]
    if seeds > 1:
        data.insert(0, _band(found.steps, low, high, _BEST))
    second = Chart(
        "curve_gains",
        "Gain on the same seeds",
        f"How many bits per byte {best} is below {found.reference} on the same seeds; above 0 it "
        f"is better. {how}",
        data,
        _titled("step", "gain, bits per byte", shapes=[_rule(0.0, axis="y")]),
    )
    return [first, second]


def _rule(value: float, *, axis: str, dash: str = "solid", color: str = "--soft") -> dict[str, Any]:
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


def trajectory(
    name: str,
    columns: Sequence[Mapping[str, np.ndarray]],
    *,
    title: str,
    unit: str,
    note: str = "",
    read: bool = True,
    baseline: float | None = None,
    between: tuple[float, float] | None = None,
    height: int = 190,
) -> Chart:
    """One column of the telemetry over training.

    Args:
      name: of the column.
      columns: of every run, all of one length.
      title: of the figure.
      unit: of the vertical axis.
      note: a sentence that ends the caption.
      read: whether anything depends on it; if not, it is grey and dotted.
      baseline: where the baseline has it throughout, if it has.
      between: the range of the axis.
      height: of the figure, pixels.
    """
    runs = np.stack([run[name] for run in columns]).astype(np.float64)
    steps = spaced(runs.shape[1], _STEPS)
    mean, low, high = runs.mean(0)[steps], runs.min(0)[steps], runs.max(0)[steps]
    look = _BEST if read else _UNREAD
    data = [_line(steps, mean, "this policy", look)]
    ends = f"{mean[0]:.3g} at first, {mean[-1]:.3g} at last"
    if len(runs) > 1:
        data.insert(0, _band(steps, low, high, look))
        ends += f"; the band spans all {len(runs)} runs"
    if baseline is not None:
        data.append(_line(steps[[0, -1]], [baseline] * 2, "baseline", _BASELINE))
        ends += f"; dashed: the baseline, {baseline:.3g}"
    layout = _titled("step", unit)
    if between is not None:
        layout["yaxis"]["range"] = list(between)
    caption = f"{ends}. {note}".strip()
    return Chart(f"trajectory_{name}", title, caption, data, layout, height)


def drive(terms: Mapping[str, np.ndarray]) -> Chart:
    """What each sensor adds to the gate's drive over training."""
    data = []
    for (name, values), (color, dash) in zip(terms.items(), _MANY, strict=False):
        steps = spaced(len(values), _STEPS)
        data.append(_line(steps, values[steps], name, {"color": color, "dash": dash}))
    return Chart(
        "drive",
        "What each sensor adds",
        "Weight times sensor, a mean over runs: above 0 a sensor pushes the gate towards its "
        "conservative pole, below 0 towards the aggressive one.",
        data,
        _titled("step", "weight x sensor", showlegend=True, shapes=[_rule(0.0, axis="y")]),
        height=_height(len(terms)) + 40,
    )


def drivers(shares: Mapping[str, Interval], runs: int) -> Chart:
    """Each sensor's share of the drive's variance."""
    several = "95 % intervals over runs" if runs > 1 else "one run, so there is no interval"
    return Chart(
        "drivers",
        "Share of the gate's movement",
        f"How much of the variance of the drive within a run each sensor accounts for; {several}. "
        "Shares sum to 1; below 0 a sensor works against the rest.",
        [_intervals(shares, _BEST, spread=runs > 1)],
        _rows(shares, "share of the drive's variance", [_rule(0.0, axis="x")]),
        height=_height(len(shares)) + 40,
    )


def _intervals(
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


def _rows(rows: Iterable[str], title: str, shapes: list[dict[str, Any]]) -> dict[str, Any]:
    """The layout of a figure with a named row for each thing."""
    names = [plain(row) for row in rows]
    axis = {"categoryorder": "array", "categoryarray": names[::-1], "automargin": True}
    span = [-0.6, len(names) - 0.4]
    return {
        "xaxis": {"title": {"text": title}},
        "yaxis": axis | {"type": "category", "range": span},
        "shapes": shapes,
    }


def _height(rows: int) -> int:
    return 90 + 32 * max(rows, 4)


# The search --------------------------------------------------------------------------------


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
        layout = _titled(words, "validation, bits per byte", showlegend=True)
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
        data.append(_intervals(several, _BEST, name="mean, 95 % interval"))
    if single:
        data.append(_intervals(single, _UNREAD, spread=False, name="one child, no interval"))
    layout = _rows(
        [r.name for r in usable], "gain over the parent, bits per byte", [_rule(0.0, axis="x")]
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
        height=_height(len(usable)) + 30,
    )


def gain_and_cost(found: Sequence[tuple[Entry, float]]) -> Chart:
    """What rewritten functions gained over their parents, against what asking for them cost.

    Args:
      found: trained proposals and their gains in bpb.
    """
    paid = any(entry.dollars for entry, _ in found)
    cost = [e.dollars if paid else e.input_tokens + e.output_tokens for e, _ in found]
    unit = "dollars" if paid else "tokens"
    providers = sorted({entry.provider for entry, _ in found})
    data = []
    for i, provider in enumerate(providers):
        own = [k for k, (entry, _) in enumerate(found) if entry.provider == provider]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": plain(provider),
                "x": numbers([cost[k] for k in own]),
                "y": numbers([found[k][1] for k in own]),
                "text": [plain(str(found[k][0].candidate)) for k in own],
                "hovertemplate": f"%{{text}}<br>%{{y}} bpb<br>%{{x}} {unit}<extra></extra>",
                "marker": {
                    "color": _MANY[i % len(_MANY)][0],
                    "symbol": _SYMBOLS[i % len(_SYMBOLS)],
                    "size": 9,
                },
                "cliponaxis": False,
            }
        )
    return Chart(
        "code_gains",
        "Gain and cost of rewritten functions",
        f"Bits per byte below the parent in screening, against the {unit} that the proposal took; "
        "above 0 a candidate is better than its parent. One seed each.",
        data,
        _titled(unit, "gain over the parent, bpb", shapes=[_rule(0.0, axis="y")])
        | {"showlegend": True},
    )


def _reach(found: Sequence[Interval]) -> list[float]:
    """A range that holds all means, and intervals as long as they leave the means room."""
    low, high = min(0.0, *(i.mean for i in found)), max(0.0, *(i.mean for i in found))
    room = max(high - low, 1e-6)
    ends = min(i.low for i in found), max(i.high for i in found)
    return [max(ends[0], low - room) - 0.1 * room, min(ends[1], high + room) + 0.1 * room]


# Evidence ----------------------------------------------------------------------------------


def gains_and_noise(found: Sequence[Gain], limit: Detectable | None) -> Chart:
    """The gain of every stage beside the noise of one run and the smallest gain to be found."""
    rows = {f"{gain.stage}, {_seeds(gain.seeds)}": gain for gain in found}
    several = {name: gain.gain for name, gain in rows.items() if gain.seeds > 1}
    single = {name: gain.gain for name, gain in rows.items() if gain.seeds == 1}
    noise = {
        name: Interval(0.0, -gain.sigma, gain.sigma)
        for name, gain in rows.items()
        if gain.sigma is not None
    }
    data = []
    if noise:
        grey = {"color": "--soft", "symbol": "line-ns-open"}
        data.append(_intervals(noise, grey, name="noise of one run: plus and minus one sigma"))
        data[0]["error_x"] |= {"thickness": 9, "width": 0, "color": "--soft-band"}
    if several:
        data.append(_intervals(several, _BEST, name="mean gain, 95 % interval"))
    if single:
        hollow = _BEST | {"symbol": "circle-open"}
        data.append(_intervals(single, hollow, spread=False, name="one seed, no interval"))
    shapes, caption = [_rule(0.0, axis="x")], ""
    if limit is not None:
        shapes.append(_rule(limit.twins, axis="x", dash="dash", color="--other"))
        shapes.append(_rule(limit.strangers, axis="x", dash="dot", color="--other"))
        caption = (
            " The dashed line is the smallest true gain that a confirmation finds four times in "
            f"five, {limit.twins:.4f} bpb if its pairs scatter like twins; the dotted one, "
            f"{limit.strangers:.4f}, if they scatter like strangers."
        )
    layout = _rows(rows, "gain, bits per byte", shapes) | {"showlegend": True}
    return Chart(
        "gains",
        "What was gained, and what noise alone does",
        f"Gains at every stage so far.{caption}",
        data,
        layout,
        height=_height(len(rows)) + 60,
    )


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"


def placebos(gains: Mapping[str, np.ndarray]) -> Chart:
    """The policy and its placebos side by side, every one over the baseline on the same seeds."""
    alive = {name: x[np.isfinite(x)] for name, x in gains.items()}
    found = {name: mean_interval(x) for name, x in alive.items() if len(x)}
    own = dict([next(iter(found.items()))]) if found else {}
    others = {name: interval for name, interval in found.items() if name not in own}
    return Chart(
        "placebos",
        "Gain over the baseline",
        "Mean gain over the baseline on the confirmation's seeds with its 95 % interval: the "
        "policy, and what has everything it has but its senses. Runs that failed are left out.",
        [
            _intervals(own, _BEST, name="the policy"),
            _intervals(others, _REFERENCE, name="placebos"),
        ],
        _rows(found, "gain, bits per byte", [_rule(0.0, axis="x")]) | {"showlegend": True},
        height=_height(len(found)) + 30,
    )


def perturbations(gains: Mapping[str, Mapping[str, np.ndarray]]) -> Chart:
    """Policy and replayed schedule under what no schedule can know."""
    looks = {"winner": _BEST, "schedule": _REFERENCE}
    words = {"winner": "the policy", "schedule": "its mean trajectory, replayed"}
    rows: dict[str, dict[str, Interval]] = {"winner": {}, "schedule": {}}
    order = []
    for kind in gains["winner"]:
        for arm, own in rows.items():
            alive = gains[arm][kind][np.isfinite(gains[arm][kind])]
            if len(alive):
                order.append(f"{_spoken(kind)}, {'policy' if arm == 'winner' else 'replayed'}")
                own[order[-1]] = mean_interval(alive)
    data = [_intervals(own, looks[arm], name=words[arm]) for arm, own in rows.items()]
    return Chart(
        "perturbations",
        "Under perturbations",
        "Mean gain over the baseline with its 95 % interval where something happens that no "
        "schedule could have known.",
        data,
        _rows(order, "gain, bits per byte", [_rule(0.0, axis="x")]) | {"showlegend": True},
        height=_height(len(order)) + 30,
    )


def _spoken(kind: str) -> str:
    return {"lr": "learning rate"}.get(kind, kind.replace("_", " "))
