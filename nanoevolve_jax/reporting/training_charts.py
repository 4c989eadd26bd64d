"""Figures of training: validation, trajectories, what drives the gate."""

from collections.abc import Mapping, Sequence

import numpy as np

from nanoevolve_jax.evidence.statistics import Interval
from nanoevolve_jax.reporting.candidates import spaced
from nanoevolve_jax.reporting.chart import (
    BASELINE,
    BEST,
    MANY,
    REFERENCE,
    UNREAD,
    Chart,
    height_of,
    interval_traces,
    line,
    row_axes,
    rule,
    shaded,
    titled,
)
from nanoevolve_jax.reporting.training import Curves, band

_STEPS = 400  # of a trajectory that are drawn at most


def validation(found: Curves) -> list[Chart]:
    """Validation curves of all arms, and how far the last one is below the one compared with."""
    names = list(found.arms)
    looks = [BASELINE, *[REFERENCE] * (len(names) - 2), BEST]
    seeds = len(found.arms[names[0]])
    data = []
    for name, look in zip(names, looks, strict=False):
        mean, low, high = band(found.arms[name])
        if seeds > 1:
            data.append(shaded(found.steps, low, high, look))
        data.append(line(found.steps, mean, name, look, markers=True))
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
        titled("step", "validation, bits per byte", showlegend=True),
    )
    best = names[-1]
    if best == found.reference:
        return [first]
    difference = found.arms[found.reference] - found.arms[best]
    mean, low, high = band(difference)
    data = [line(found.steps, mean, f"{best} over {found.reference}", BEST, markers=True)]
    if seeds > 1:
        data.insert(0, shaded(found.steps, low, high, BEST))
    second = Chart(
        "curve_gains",
        "Gain on the same seeds",
        f"How many bits per byte {best} is below {found.reference} on the same seeds; above 0 it "
        f"is better. {how}",
        data,
        titled("step", "gain, bits per byte", shapes=[rule(0.0, axis="y")]),
    )
    return [first, second]


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
    look = BEST if read else UNREAD
    data = [line(steps, mean, "this policy", look)]
    ends = f"{mean[0]:.3g} at first, {mean[-1]:.3g} at last"
    if len(runs) > 1:
        data.insert(0, shaded(steps, low, high, look))
        ends += f"; the band spans all {len(runs)} runs"
    if baseline is not None:
        data.append(line(steps[[0, -1]], [baseline] * 2, "baseline", BASELINE))
        ends += f"; dashed: the baseline, {baseline:.3g}"
    layout = titled("step", unit)
    if between is not None:
        layout["yaxis"]["range"] = list(between)
    caption = f"{ends}. {note}".strip()
    return Chart(f"trajectory_{name}", title, caption, data, layout, height)


def drive(terms: Mapping[str, np.ndarray]) -> Chart:
    """What each sensor adds to the gate's drive over training."""
    data = []
    for (name, values), (color, dash) in zip(terms.items(), MANY, strict=False):
        steps = spaced(len(values), _STEPS)
        data.append(line(steps, values[steps], name, {"color": color, "dash": dash}))
    return Chart(
        "drive",
        "What each sensor adds",
        "Weight times sensor, a mean over runs: above 0 a sensor pushes the gate towards its "
        "conservative pole, below 0 towards the aggressive one.",
        data,
        titled("step", "weight x sensor", showlegend=True, shapes=[rule(0.0, axis="y")]),
        height=height_of(len(terms)) + 40,
    )


def drivers(shares: Mapping[str, Interval], runs: int) -> Chart:
    """Each sensor's share of the drive's variance."""
    several = "95 % intervals over runs" if runs > 1 else "one run, so there is no interval"
    return Chart(
        "drivers",
        "Share of the gate's movement",
        f"How much of the variance of the drive within a run each sensor accounts for; {several}. "
        "Shares sum to 1; below 0 a sensor works against the rest.",
        [interval_traces(shares, BEST, spread=runs > 1)],
        row_axes(shares, "share of the drive's variance", [rule(0.0, axis="x")]),
        height=height_of(len(shares)) + 40,
    )
