"""Sections on how the best candidate trains: its curves, what it does, what drives it."""

import numpy as np

from nanoevolve_jax.evidence.attribution import drive_shares
from nanoevolve_jax.evolution import tournament
from nanoevolve_jax.policy.canonical import canonical, moving_actuators
from nanoevolve_jax.policy.gate import static_actuators
from nanoevolve_jax.policy.spec import Actuators, OptimizerSpec, Sensors
from nanoevolve_jax.reporting import training, training_charts
from nanoevolve_jax.reporting.candidates import spaced
from nanoevolve_jax.reporting.explain import explain, recorded
from nanoevolve_jax.reporting.history import History
from nanoevolve_jax.reporting.rewritten import called
from nanoevolve_jax.reporting.section import Group, Section, Table, with_interval

_NO_TELEMETRY = "No telemetry of it is in this folder, so there is nothing to draw."
_UNITS = {
    "update_multiplier": "factor",
    "trust_ratio_mix": "share",
    "clip_threshold": "threshold",
    "second_moment_beta": "decay",
    "orthogonal_mix": "share",
}


def curves(history: History) -> Section:
    """Validation curves of the baseline and the best."""
    record = training.subject(history)
    found = training.curves(history, record)
    title = "Validation curves"
    if found is None:
        return Section("curves", title, [_NO_TELEMETRY])
    said = []
    if record.id == tournament.BASELINE_ID:
        said = ["No other candidate survived, so the baseline stands alone."]
    head = ["step", *found.arms]
    several = len(found.arms[record.id]) > 1
    rows = [
        [f"{step:,}", *(_spread(arm[:, i], several) for arm in found.arms.values())]
        for i, step in enumerate(found.steps)
    ]
    shown = spaced(len(rows), 12)
    caption = "Bits per byte, mean and 95 % interval" if several else "Bits per byte, one seed"
    table = Table(caption, head, [rows[i] for i in shown], folded=True)
    return Section("curves", title, said, [Group(None, training_charts.validation(found))], [table])


def _spread(values: np.ndarray, several: bool) -> str:
    mean, low, high = (float(x[0]) for x in training.band(values[:, None]))
    return f"{mean:.4f} ({low:.4f} to {high:.4f})" if several else f"{mean:.4f}"


def policy(history: History) -> Section:
    """What the policy does: gate, actuators, sensors, and the same in words."""
    record = training.subject(history)
    said = explain(history, record)
    title = f"What {record.id} does"
    where, columns = recorded(history, record)
    if not columns:
        return Section("policy", title, [*said, _NO_TELEMETRY])
    enabled = bool(record.spec.control.enabled)
    gate = training_charts.trajectory(
        "gate",
        columns,
        title="Gate",
        unit="gate",
        note="0 is aggressive, 1 conservative."
        + ("" if enabled else " It is not in use: this is what it would have been."),
        read=enabled,
        between=(0.0, 1.0),
        height=240,
    )
    usual = static_actuators(history.baseline.spec)._asdict()
    code = called(record) if enabled else frozenset()
    acting = moving_actuators(canonical(record.spec)) if enabled else []
    if "actuate" in code or "direction" in code:
        acting = list(Actuators._fields)
    all_read = "gate" in code or "features" in code
    actuators = [
        training_charts.trajectory(
            name,
            columns,
            title=name,
            unit=_UNITS[name],
            note="" if name in acting else _idle(record.spec, name),
            read=name in acting,
            baseline=float(usual[name]),
        )
        for name in Actuators._fields
    ]
    weights = record.spec.control.coefficients._asdict()
    sensors = [
        training_charts.trajectory(
            name,
            columns,
            title=name,
            unit="normalised",
            note="Told to rewritten functions."
            if all_read
            else f"Weight in the gate: {weights[name]:g}"
            + (", so it is not read." if weights[name] == 0 or not enabled else "."),
            read=enabled and (all_read or weights[name] != 0),
        )
        for name in Sensors._fields
    ]
    groups = [
        Group(None, [gate]),
        Group("The five actuators", actuators, small=True),
        Group("The six sensors, as the gate sees them", sensors, small=True),
    ]
    where = f"Figures are from {where}; grey and dotted: nothing depends on it."
    return Section("policy", title, said, groups, notes=[where])


def _idle(spec: OptimizerSpec, actuator: str) -> str:
    """Why no gate moves an actuator."""
    if not spec.control.enabled:
        return "Fixed: there is no gate."
    poles = (spec.control.aggressive, spec.control.conservative)
    same = getattr(poles[0], actuator) == getattr(poles[1], actuator)
    return "Fixed: both poles are equal." if same else "Its stage is off: nothing reads it."


def drivers(history: History) -> Section:
    """What drives the gate."""
    record, title = training.subject(history), "What drives the gate"
    if not record.spec.control.enabled:
        return Section("drivers", title, [f"{record.id} uses no gate, so nothing drives it."])
    if code := called(record) & {"gate", "features"}:
        slots = " and ".join(sorted(code))
        said = f"With its {slots} rewritten, no weights say what drives the gate of {record.id}."
        return Section("drivers", title, [said])
    _, columns = recorded(history, record)
    if not columns:
        return Section("drivers", title, [_NO_TELEMETRY])
    found = training.shares([drive_shares(run, record.spec) for run in columns])
    if not found:
        still = f"The gate of {record.id} stands still: nothing that it senses changes."
        return Section("drivers", title, [still])
    several = len(columns) > 1
    rows = [[name, with_interval(share, ".1%", several)] for name, share in found.items()]
    return Section(
        "drivers",
        title,
        [],
        [
            Group(
                None,
                [
                    training_charts.drivers(found, len(columns)),
                    training_charts.drive(training.drive_terms(columns, record.spec)),
                ],
            )
        ],
        [Table("Share of the drive's variance", ["sensor", "share"], rows, folded=True)],
    )
