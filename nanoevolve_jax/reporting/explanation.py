"""Explains what a policy does early, in the middle and late in training.

The sentences describe recorded trajectories, not only coefficients: a weight on a sensor that never
moves has no effect, and only a run shows that.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from nanoevolve_jax.evidence.attribution import drive_shares
from nanoevolve_jax.evolution import tournament
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.policy.canonical import canonical, moving_actuators
from nanoevolve_jax.policy.gate import static_actuators
from nanoevolve_jax.policy.spec import ACTUATORS, Actuators, OptimizerSpec, Sensors
from nanoevolve_jax.reporting.descriptions import (
    constant_differences,
    shared_with_nanochat,
    short_name,
)
from nanoevolve_jax.reporting.history import History
from nanoevolve_jax.reporting.rewritten_code import called_slots

Columns = Mapping[str, np.ndarray]  # telemetry of one run, float[steps] by column

GATE_RANGE = 0.02  # a gate with a smaller range counts as constant
_ACTUATOR_RANGE = 0.01  # the same for an actuator, as a share of its mean
_SCHEDULE_SHARE = 0.9  # drive from step_fraction above which the gate counts as a schedule
_MINOR_SHARE = 0.01  # smaller shares of the drive are not mentioned
_SAME_COURSE = 0.1  # spread over seeds, relative to the gate's own range
NO_GATE = "It has no gate, so it is the same from the first step to the last."
_NO_TRAJECTORY = "No complete run has stored telemetry, so the course of its gate is unknown."


def explain(history: History, record: Record) -> list[str]:
    """Explains a candidate in sentences.

    Args:
      history: Contents of the run folder.
      record: Record of the candidate.

    Returns:
      Sentences that can each be read alone, the most informative first.

    Raises:
      EvidenceError: if its telemetry is damaged.
    """
    baseline = history.baseline
    if record.id == tournament.BASELINE_ID:
        return [
            "It is the baseline: NanoChat's optimizer with the momentum and the second-moment "
            "decay of the recipe.",
            NO_GATE,
        ]
    if record.recipe is not None:
        return [
            *_failure(record),
            f"It is a control: it changes only the recipe ({_recipe(history, record)}) and keeps "
            "the optimizer of the baseline.",
            NO_GATE,
        ]
    source, columns = recorded(history, record)
    code = called_slots(record)
    return [
        *_failure(record),
        *_rewritten(code),
        *_behaviour(source, columns, record.spec, code),
        *([] if code else _constant_actuators(record.spec, baseline.spec)),
        *constant_differences(record.spec, baseline.spec, code),
        shared_with_nanochat(record.spec, code),
    ]


def recorded(history: History, record: Record) -> tuple[str, list[Columns]]:
    """Returns the most informative trajectories of a candidate.

    These are the runs of its confirmation, or else those of screening and promotion. Failed runs
    are left out.

    Returns:
      (phrase that names the runs, telemetry of each run; all runs have the same length).
    """
    card = history.cards.get(record.id)
    if card is not None:
        runs = [run for run in history.tested_runs(card, "winner") if run.failure is None]
        telemetry = [history.telemetry(run.key) for run in runs]
        columns: list[Columns] = [x for x in telemetry if x is not None]
        if columns:
            return _source(columns, "its confirmation"), columns
    runs = [run for run in history.runs_of(record) if run.failure is None]
    screening = None if np.isnan(record.val_bpb[0]) else history.telemetry(record.id)
    telemetry = [screening, *(history.telemetry(run.key) for run in runs)]
    columns = [x for x in telemetry if x is not None]
    return _source(columns, "screening and promotion" if runs else "screening"), columns


def _source(columns: Sequence[Columns], stage: str) -> str:
    if not columns:
        return f"no run of {stage}"
    count = "one run" if len(columns) == 1 else f"{len(columns)} runs"
    return f"{count} of {stage}, {len(columns[0]['gate'])} steps"


def _recipe(history: History, record: Record) -> str:
    usual, own = history.config.recipe, record.recipe or {}
    return ", ".join(f"{name} {usual[name]:g} -> {x:g}" for name, x in own.items())


def _failure(record: Record) -> list[str]:
    if record.failure is None:
        return []
    stage = "screening" if np.isnan(record.val_bpb[0]) else "promotion"
    return [f"It failed in {stage} at step {record.failure['step']}: {record.failure['reason']}."]


def _rewritten(code: Collection[str]) -> list[str]:
    if not code:
        return []
    functions = "function is" if len(code) == 1 else "functions are"
    return [f"Its {_listed(sorted(code))} {functions} rewritten; see the source."]


def _behaviour(
    source: str, columns: Sequence[Columns], spec: OptimizerSpec, code: frozenset[str]
) -> list[str]:
    """Describes the gate, the actuators it moves and the sensors that move it."""
    if not spec.control.enabled:
        return [NO_GATE]
    # A rewritten function other than `direction` may replace the gate, or what reads it.
    opaque = not code <= {"direction"}
    moving = moving_actuators(canonical(spec))
    if opaque:
        moving = list(Actuators._fields)
    elif code:  # `direction` receives every actuator
        poles = zip(spec.control.aggressive, spec.control.conservative, strict=True)
        moving = [name for name, (a, b) in zip(Actuators._fields, poles, strict=True) if a != b]
    if not moving:
        return ["Its gate moves no actuator with an effect, so the policy stays the same."]
    if not columns:
        return [_NO_TRAJECTORY]
    start = f"In {source}: its gate (0 is aggressive, 1 conservative) "
    gates = np.stack([run["gate"] for run in columns]).astype(np.float64)
    constant = not opaque and not any(spec.control.coefficients)
    if constant:
        sentences = [f"{start}reads no sensor and stays at {gates.mean():.2f}."]
    else:
        sentences = [f"{start}{gate_course(gates.mean(0))}."]
    sentences += actuator_courses(columns, moving)
    if constant:
        return sentences
    if opaque:
        return sentences + seed_spread(gates)
    if np.ptp(gates, axis=1).max() < GATE_RANGE:
        return [*sentences, "Its sensors hardly move it."]
    sentences += [crossings(gates.mean(0)), *drivers(columns, spec)]
    return sentences + ([] if reads_only_step(spec) else seed_spread(gates))


# Courses -----------------------------------------------------------------------------------


def thirds(trajectory: np.ndarray) -> tuple[float, float, float]:
    """Returns the means of the first, second and last third of float[steps]."""
    if len(trajectory) < 3:
        trajectory = np.repeat(trajectory, 3)
    first, middle, last = (float(part.mean()) for part in np.array_split(trajectory, 3))
    return first, middle, last


def course(trajectory: np.ndarray, smallest: float, form: str = ".2f") -> str:
    """Returns a verb phrase such as 'rises from 0.10 early to 0.80 in the middle and falls ...'.

    Args:
      trajectory: Values by step, float[steps].
      smallest: Range below which the trajectory counts as constant.
      form: Format of numbers.
    """
    low, high, mean = (float(f(trajectory)) for f in (np.min, np.max, np.mean))
    if high - low < smallest:
        return f"stays at {mean:{form}}"
    first, middle, last = thirds(trajectory)
    a, b, c = (f"{x:{form}}" for x in (first, middle, last))
    if max(first, middle, last) - min(first, middle, last) < smallest:
        return f"varies around {mean:{form}}, between {low:{form}} and {high:{form}}"
    if (middle - first) * (last - middle) >= 0:
        verb = "rises" if last > first else "falls"
        return f"{verb} from {a} early through {b} in the middle to {c} late"
    verb, then = ("rises", "falls") if middle > first else ("falls", "rises")
    return f"{verb} from {a} early to {b} in the middle and {then} to {c} late"


def gate_course(gate: np.ndarray) -> str:
    """Returns the course of a gate, float[steps], with its range."""
    low, high = float(gate.min()), float(gate.max())
    phrase = course(gate, GATE_RANGE)
    if high - low < GATE_RANGE:
        return phrase
    return f"{phrase}; its range is {high - low:.2f}, from {low:.2f} to {high:.2f}"


def actuator_courses(columns: Sequence[Columns], names: Sequence[str]) -> list[str]:
    """Describes the mean courses of actuators over runs, in at most one sentence."""
    phrases = []
    for name in names:
        trajectory = np.asarray(np.mean([run[name] for run in columns], axis=0, dtype=np.float64))
        smallest = max(_ACTUATOR_RANGE * abs(float(trajectory.mean())), 1e-9)
        form = ".3f" if name.endswith("beta") else ".2f"
        phrases.append(f"{_phrase(name)} {course(trajectory, smallest, form)}")
    return [f"As a result, {_listed(phrases)}."] if phrases else []


def crossing_steps(gate: np.ndarray) -> list[int]:
    """Returns the steps, counted from 1, at which a gate, float[steps], has just crossed 0.5."""
    above = gate >= 0.5
    return [int(i) + 2 for i in np.flatnonzero(above[1:] != above[:-1])]


def crossings(gate: np.ndarray) -> str:
    """Says when a gate, float[steps], crosses 0.5, as a step and as a share of the run."""
    steps, total = crossing_steps(gate), len(gate)
    if not steps:
        side = "above" if gate[0] >= 0.5 else "below"
        return f"It always stays {side} 0.5, the midpoint between its poles."
    when = [f"step {step} of {total} ({step / total:.0%} of the run)" for step in steps]
    if len(steps) == 1:
        way = "upwards" if gate[-1] >= 0.5 else "downwards"
        return f"It crosses 0.5, the midpoint between its poles, {way} at {when[0]}."
    return (
        f"It crosses 0.5, the midpoint between its poles, {len(steps)} times, first at {when[0]} "
        f"and last at {when[-1]}."
    )


# What drives the gate ----------------------------------------------------------------------


def mean_shares(columns: Sequence[Columns], spec: OptimizerSpec) -> dict[str, float]:
    """Returns each sensor's mean share of the drive's variance over runs, largest size first."""
    each = [drive_shares(run, spec) for run in columns]
    shares = {name: float(np.mean([share[name] for share in each])) for name in Sensors._fields}
    return dict(sorted(shares.items(), key=lambda item: -abs(item[1])))


def drivers(columns: Sequence[Columns], spec: OptimizerSpec) -> list[str]:
    """Says which sensors move the gate, and whether a schedule could replace it."""
    if reads_only_step(spec):
        return ["It reads only the step fraction, so a schedule could replace it."]
    shares = {n: x for n, x in mean_shares(columns, spec).items() if abs(x) >= _MINOR_SHARE}
    if not shares:
        return ["Nothing moves its gate, because its sensors stay constant."]
    listed = _listed(
        [
            f"{short_name(f'control.coefficients.{name}')} ({x:.0%}"
            f"{', against the others' if x < 0 else ''})"
            for name, x in shares.items()
        ]
    )
    return [f"Its gate is moved by {listed}. {_schedule_part(shares)}"]


def reads_only_step(spec: OptimizerSpec) -> bool:
    """Returns whether the step fraction is the only sensor that a gate reads."""
    weights = spec.control.coefficients
    return weights.step_fraction != 0 and not any(weights[:-1])


def _schedule_part(shares: Mapping[str, float]) -> str:
    scheduled = shares.get("step_fraction", 0.0)
    sensed = sum(abs(x) for name, x in shares.items() if name != "step_fraction")
    if scheduled >= _SCHEDULE_SHARE and sensed <= 1.0 - _SCHEDULE_SHARE:
        return "It acts like a schedule."
    if abs(scheduled) <= 1.0 - _SCHEDULE_SHARE:
        return "It reacts to the state of training and not to the step."
    return "It is partly a schedule and partly a reaction to the state of training."


def seed_spread(gates: np.ndarray) -> list[str]:
    """Says whether a gate, float[runs, steps], takes the same course on every seed."""
    movement = float(np.ptp(gates.mean(0)))
    if movement < GATE_RANGE:
        return []
    if len(gates) < 2:
        return ["One seed cannot show whether the gate reacts to its run or repeats one course."]
    spread = float(gates.std(axis=0, ddof=1).mean())
    start = f"The standard deviation of its courses over {len(gates)} seeds is {spread:.3f}"
    if spread < _SAME_COURSE * movement:
        return [f"{start}: they are nearly equal, so a schedule could replay them."]
    return [f"{start}: the gate differs from run to run."]


def _constant_actuators(spec: OptimizerSpec, baseline: OptimizerSpec) -> list[str]:
    """Lists the actuators that a gate holds at a constant other than the baseline's."""
    form = canonical(spec)
    if not form.control.enabled:
        return []
    usual, moving = static_actuators(baseline), moving_actuators(form)
    phrases = []
    for name, row in ACTUATORS._asdict().items():
        value = getattr(form.control.aggressive, name)
        if row.field and row.scales_field:
            value *= getattr(form, row.field)
        # The sentence about clipping includes its threshold.
        has_effect = row.stage is None or (row.stage != "clip" and getattr(form, row.stage))
        if has_effect and name not in moving and value != getattr(usual, name):
            phrases.append(f"{row.phrase} at {value:.4g} instead of {getattr(usual, name):.4g}")
    return [f"Throughout, it holds {_listed(phrases)}."] if phrases else []


def _phrase(actuator: str) -> str:
    return getattr(ACTUATORS, actuator).phrase


def _listed(phrases: Sequence[str]) -> str:
    """Returns 'a, b and c'."""
    return " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))
