"""Sections on the policy itself: validation curves, its behaviour, and what drives its gate."""

from collections.abc import Mapping, Sequence

import numpy as np

from nanoevolve_jax.evidence.attribution import drive_shares
from nanoevolve_jax.evidence.statistics import Interval
from nanoevolve_jax.evolution import tournament
from nanoevolve_jax.policy.canonical import canonical, moving_actuators
from nanoevolve_jax.policy.gate import static_actuators
from nanoevolve_jax.policy.spec import ACTUATORS, Actuators, OptimizerSpec
from nanoevolve_jax.reporting import measurements
from nanoevolve_jax.reporting.candidates import spaced
from nanoevolve_jax.reporting.elements import (
    BASELINE,
    BEST,
    LOOKS,
    REFERENCE,
    UNREAD,
    Chart,
    Group,
    Section,
    Table,
    axes,
    height_of,
    interval_text,
    interval_trace,
    line,
    row_axes,
    rule,
    shaded,
)
from nanoevolve_jax.reporting.explanation import explain, recorded
from nanoevolve_jax.reporting.history import History
from nanoevolve_jax.reporting.measurements import Curves, band
from nanoevolve_jax.reporting.rewritten_code import called_slots

_MAX_STEPS = 400  # points of a trajectory in a figure
_TABLE_ROWS = 12
_NO_TELEMETRY = "The run folder has no telemetry of this policy."

# Validation curves -------------------------------------------------------------------------


def curves_section(history: History) -> Section:
    """Returns the validation curves of the baseline and the policy."""
    record = measurements.subject(history)
    curves = measurements.curves(history, record)
    title = "Validation curves"
    if curves is None:
        return Section("curves", title, [_NO_TELEMETRY])
    sentences = []
    if record.id == tournament.BASELINE_ID:
        sentences = ["Every other candidate failed, so only the baseline is shown."]
    several = len(curves.arms[record.id]) > 1
    rows = [
        [f"{step:,}", *(_mean_text(arm[:, i], several) for arm in curves.arms.values())]
        for i, step in enumerate(curves.steps)
    ]
    caption = "Bits per byte, mean and 95 % interval" if several else "Bits per byte, one seed"
    shown = [rows[i] for i in spaced(len(rows), _TABLE_ROWS)]
    table = Table(caption, ["step", *curves.arms], shown, folded=True)
    return Section("curves", title, sentences, [Group(None, _curve_charts(curves))], [table])


def _mean_text(values: np.ndarray, several: bool) -> str:
    mean, low, high = (float(x[0]) for x in band(values[:, None]))
    return f"{mean:.4f} ({low:.4f} to {high:.4f})" if several else f"{mean:.4f}"


def _curve_charts(curves: Curves) -> list[Chart]:
    """Returns the curves of all arms, and the gain of the last arm over its reference."""
    names = list(curves.arms)
    looks = [BASELINE, *[REFERENCE] * (len(names) - 2), BEST]
    seeds = len(curves.arms[names[0]])
    traces = []
    for name, look in zip(names, looks, strict=False):
        mean, low, high = band(curves.arms[name])
        if seeds > 1:
            traces.append(shaded(curves.steps, low, high, look))
        traces.append(line(curves.steps, mean, name, look, markers=True))
    spread = (
        f"Means over {seeds} seeds; the bands are the 95 % intervals of the means."
        if seeds > 1
        else "There is only one seed, so the spread over seeds is unknown and no band is drawn."
    )
    loss = Chart(
        "curves",
        "Validation loss",
        f"Validation loss in bits per byte during the runs of {curves.stage}. {spread}",
        traces,
        axes("step", "validation, bits per byte", showlegend=True),
    )
    best = names[-1]
    if best == curves.reference:
        return [loss]
    mean, low, high = band(curves.arms[curves.reference] - curves.arms[best])
    traces = [line(curves.steps, mean, f"{best} over {curves.reference}", BEST, markers=True)]
    if seeds > 1:
        traces.insert(0, shaded(curves.steps, low, high, BEST))
    gain = Chart(
        "curve_gains",
        "Gain on the same seeds",
        f"Loss of {curves.reference} minus loss of {best} on the same seeds, in bits per byte; "
        f"above 0, {best} is better. {spread}",
        traces,
        axes("step", "gain, bits per byte", shapes=[rule(0.0, axis="y")]),
    )
    return [loss, gain]


# Behaviour ---------------------------------------------------------------------------------


def behaviour_section(history: History) -> Section:
    """Returns what the policy does, in words and as trajectories of gate, actuators and sensors."""
    record = measurements.subject(history)
    sentences = explain(history, record)
    title = f"What {record.id} does"
    source, columns = recorded(history, record)
    if not columns:
        return Section("policy", title, [*sentences, _NO_TELEMETRY])
    enabled = bool(record.spec.control.enabled)
    code = called_slots(record) if enabled else frozenset()
    off = "" if enabled else " It is not in use: the figure shows the value that it would have had."
    gate = trajectory(
        "gate",
        columns,
        title="Gate",
        unit="gate",
        note=f"0 is aggressive, 1 conservative.{off}",
        read=enabled,
        limits=(0.0, 1.0),
        height=240,
    )
    moving = moving_actuators(canonical(record.spec)) if enabled else []
    if "actuate" in code or "direction" in code:
        moving = list(Actuators._fields)
    usual = static_actuators(history.baseline.spec)._asdict()
    actuators = [
        trajectory(
            name,
            columns,
            title=name,
            unit=row.unit,
            note="" if name in moving else _why_constant(record.spec, name),
            read=name in moving,
            baseline=float(usual[name]),
        )
        for name, row in ACTUATORS._asdict().items()
    ]
    all_read = "gate" in code or "features" in code
    sensors = []
    for name, weight in record.spec.control.coefficients._asdict().items():
        read = enabled and (all_read or weight != 0)
        note = f"Weight in the gate: {weight:g}{'' if read else ', so it has no effect'}."
        note = "Input of rewritten functions." if all_read else note
        sensors.append(
            trajectory(name, columns, title=name, unit="normalised", note=note, read=read)
        )
    groups = [
        Group(None, [gate]),
        Group(f"The {len(actuators)} actuators", actuators, small=True),
        Group(f"The {len(sensors)} sensors, normalised as in the gate", sensors, small=True),
    ]
    note = f"The figures show {source}. Grey and dotted curves have no effect on training."
    return Section("policy", title, sentences, groups, notes=[note])


def _why_constant(spec: OptimizerSpec, actuator: str) -> str:
    if not spec.control.enabled:
        return "Constant, because there is no gate."
    poles = (spec.control.aggressive, spec.control.conservative)
    if getattr(poles[0], actuator) == getattr(poles[1], actuator):
        return "Constant, because both poles are equal."
    return "Without effect, because its stage is switched off."


def trajectory(
    name: str,
    columns: Sequence[Mapping[str, np.ndarray]],
    *,
    title: str,
    unit: str,
    note: str = "",
    read: bool = True,
    baseline: float | None = None,
    limits: tuple[float, float] | None = None,
    height: int = 190,
) -> Chart:
    """Returns the figure of one telemetry column during training.

    Args:
      name: Name of the column.
      columns: Telemetry of each run, all with the same number of steps.
      title: Title of the figure.
      unit: Title of the vertical axis.
      note: Sentence at the end of the caption.
      read: Whether the column has an effect on training; otherwise it is grey and dotted.
      baseline: Constant value of the baseline, if it has one.
      limits: Limits of the vertical axis.
      height: Height in pixels.
    """
    runs = np.stack([run[name] for run in columns]).astype(np.float64)
    steps = spaced(runs.shape[1], _MAX_STEPS)
    mean, low, high = runs.mean(0)[steps], runs.min(0)[steps], runs.max(0)[steps]
    look = BEST if read else UNREAD
    traces = [line(steps, mean, "this policy", look)]
    caption = f"From {mean[0]:.3g} at the first step to {mean[-1]:.3g} at the last"
    if len(runs) > 1:
        traces.insert(0, shaded(steps, low, high, look))
        caption += f"; the band covers all {len(runs)} runs"
    if baseline is not None:
        traces.append(line(steps[[0, -1]], [baseline] * 2, "baseline", BASELINE))
        caption += f"; the dashed line is the baseline at {baseline:.3g}"
    layout = axes("step", unit)
    if limits is not None:
        layout.yaxis.range = limits
    return Chart(f"trajectory_{name}", title, f"{caption}. {note}".strip(), traces, layout, height)


# Drivers of the gate -----------------------------------------------------------------------


def drivers_section(history: History) -> Section:
    """Returns how much each sensor moves the gate."""
    record, title = measurements.subject(history), "What drives the gate"

    def without_figures(sentence: str) -> Section:
        return Section("drivers", title, [sentence])

    if not record.spec.control.enabled:
        return without_figures(f"{record.id} has no gate.")
    if code := called_slots(record) & {"gate", "features"}:
        slots = " and ".join(sorted(code))
        return without_figures(
            f"The {slots} of {record.id} {'is' if len(code) == 1 else 'are'} rewritten, so its "
            "weights do not show what drives its gate."
        )
    _, columns = recorded(history, record)
    if not columns:
        return without_figures(_NO_TELEMETRY)
    shares = measurements.share_intervals([drive_shares(run, record.spec) for run in columns])
    if not shares:
        return without_figures(
            f"The gate of {record.id} is constant, because its sensors do not change."
        )
    several = len(columns) > 1
    rows = [[name, interval_text(share, ".1%", several)] for name, share in shares.items()]
    terms = measurements.drive_terms(columns, record.spec)
    charts = [_share_chart(shares, len(columns)), _drive_chart(terms)]
    table = Table("Share of the drive's variance", ["sensor", "share"], rows, folded=True)
    return Section("drivers", title, [], [Group(None, charts)], [table])


def _share_chart(shares: Mapping[str, Interval], runs: int) -> Chart:
    intervals = "95 % intervals over runs" if runs > 1 else "one run, so there is no interval"
    return Chart(
        "drivers",
        "Share of the gate's movement",
        "Share of each sensor in the variance of the drive, the weighted sum that the gate is "
        f"computed from; {intervals}. The shares add up to 1. A sensor with a negative share "
        "opposes the others.",
        [interval_trace(shares, BEST, bars=runs > 1)],
        row_axes(shares, "share of the drive's variance", [rule(0.0, axis="x")]),
        height=height_of(len(shares)) + 40,
    )


def _drive_chart(terms: Mapping[str, np.ndarray]) -> Chart:
    traces = []
    for (name, values), look in zip(terms.items(), LOOKS, strict=False):
        steps = spaced(len(values), _MAX_STEPS)
        traces.append(line(steps, values[steps], name, look))
    return Chart(
        "drive",
        "Contribution of each sensor",
        "Weight times sensor, mean over runs. Positive contributions move the gate towards its "
        "conservative pole, negative ones towards its aggressive pole.",
        traces,
        axes("step", "weight x sensor", showlegend=True, shapes=[rule(0.0, axis="y")]),
        height=height_of(len(terms)) + 40,
    )
