"""What a policy does early, in the middle and late, from what its runs recorded.

Sentences are made from trajectories and not from coefficients alone: a weight on a sensor that
never moves does nothing, and only a run shows that.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from nanoevolve_jax.evidence.attribution import drive_shares
from nanoevolve_jax.evolution import tournament
from nanoevolve_jax.evolution.archive import Record
from nanoevolve_jax.policy.canonical import canonical, moving_actuators
from nanoevolve_jax.policy.gate import static_actuators
from nanoevolve_jax.policy.spec import Actuators, OptimizerSpec, Sensors
from nanoevolve_jax.reporting.differences import as_in_nanochat, fixed_differences
from nanoevolve_jax.reporting.history import History
from nanoevolve_jax.reporting.rewritten import called
from nanoevolve_jax.reporting.words import short_name

Columns = Mapping[str, np.ndarray]  # float[steps] by column of a run's telemetry

STILL = 0.02  # a gate that moves by less than this stands still
_STILL_SHARE = 0.01  # likewise an actuator, of its mean
_CALENDAR = 0.9  # of the drive by the share of the run alone: a calendar
_MINOR = 0.01  # shares of the drive below this are not worth a word
_REPEATS = 0.1  # scatter over seeds, of the gate's own movement: the same course every time
_NAMES = {
    "update_multiplier": "the update multiplier",
    "trust_ratio_mix": "the share of the trust ratio",
    "clip_threshold": "the clip threshold",
    "second_moment_beta": "the second-moment decay",
    "orthogonal_mix": "the share of the orthogonal direction",
}


def explain(history: History, record: Record) -> list[str]:
    """What a candidate does, in sentences.

    Args:
      history: of its search.
      record: one of its records.

    Returns:
      Each a sentence that stands by itself, the most telling first.

    Raises:
      EvidenceError: if its telemetry is damaged.
    """
    baseline = history.baseline
    if record.id == tournament.BASELINE_ID:
        return [
            "It is the baseline: NanoChat's optimizer, with the momentum and the second-moment "
            "decay of the recipe.",
            no_gate(),
        ]
    if record.recipe is not None:
        return [
            *_failure(record),
            f"It is a control: it changes only the recipe ({_recipe(history, record)}), and its "
            "optimizer is the baseline's.",
            no_gate(),
        ]
    source, columns = recorded(history, record)
    code = called(record)
    return [
        *_failure(record),
        *_rewritten(code),
        *_behaviour(source, columns, record.spec, code),
        *([] if code else _held(record.spec, baseline.spec)),
        *fixed_differences(record.spec, baseline.spec, code),
        as_in_nanochat(record.spec, code),
    ]


def recorded(history: History, record: Record) -> tuple[str, list[Columns]]:
    """The trajectories that say most of a candidate, and where they are from.

    Those of its confirmation, or else of its screening run together with those of promotion.

    Returns:
      (the runs in words, columns of every run that did not fail; all of one length).
    """
    card = history.cards.get(record.id)
    if card is not None:
        runs = [run for run in history.tested_runs(card, "winner") if run.failure is None]
        found = [history.telemetry(run.key) for run in runs]
        if columns := [x for x in found if x is not None]:
            return _source(columns, "its confirmation"), columns
    runs = [run for run in history.runs_of(record) if run.failure is None]
    screening = None if np.isnan(record.val_bpb[0]) else history.telemetry(record.id)
    found = [screening, *(history.telemetry(run.key) for run in runs)]
    columns = [x for x in found if x is not None]
    return _source(columns, "screening and promotion" if runs else "screening"), columns


def _source(columns: Sequence[Columns], stage: str) -> str:
    if not columns:
        return f"no run of {stage}"
    count = "one run" if len(columns) == 1 else f"{len(columns)} runs"
    return f"{count} of {stage}, {len(columns[0]['gate'])} steps"


def _recipe(history: History, record: Record) -> str:
    usual = history.config.recipe
    return ", ".join(f"{name} {usual[name]:g} -> {x:g}" for name, x in record.recipe.items())


def _failure(record: Record) -> list[str]:
    if record.failure is None:
        return []
    stage = "screening" if np.isnan(record.val_bpb[0]) else "promotion"
    return [f"It failed in {stage} at step {record.failure['step']}: {record.failure['reason']}."]


def _rewritten(code: Collection[str]) -> list[str]:
    """That functions are other ones; what they do, only their sources say."""
    if not code:
        return []
    slots = _listed(sorted(code))
    return [f"Its {slots} {'is' if len(code) == 1 else 'are'} rewritten: see the source."]


def _behaviour(
    source: str, columns: Sequence[Columns], spec: OptimizerSpec, code: frozenset[str]
) -> list[str]:
    if not spec.control.enabled:
        return [no_gate()]
    if not code <= {"direction"}:
        return _course_alone(source, columns)
    moving = moving_actuators(canonical(spec))
    if code:  # it is told every actuator
        poles = zip(
            Actuators._fields, spec.control.aggressive, spec.control.conservative, strict=True
        )
        moving = [name for name, low, high in poles if low != high]
    if not moving:
        return ["Its gate moves nothing that acts, so that it is the same from first to last step."]
    if not columns:
        return ["No trajectory of a whole run was kept, so how its gate moves is not known."]
    start = f"In {source}: its gate (0 is aggressive, 1 conservative) "
    gates = np.stack([run["gate"] for run in columns]).astype(np.float64)
    if not any(spec.control.coefficients):
        return [f"{start}senses nothing and stands still at {gates.mean():.2f}."] + actuators(
            columns, moving
        )
    found = [f"{start}{gate_course(gates.mean(0))}.", *actuators(columns, moving)]
    if np.ptp(gates, axis=1).max() < STILL:
        return [*found, "What it senses hardly moves it."]
    found += [crossings(gates.mean(0)), *drivers(columns, spec)]
    return found + ([] if only_calendar(spec) else agreement(gates))


def _course_alone(source: str, columns: Sequence[Columns]) -> list[str]:
    """How a gate goes whose reasons, or whose effect, a rewritten function alone knows."""
    if not columns:
        return ["No trajectory of a whole run was kept, so how its gate moves is not known."]
    gates = np.stack([run["gate"] for run in columns]).astype(np.float64)
    return [
        f"In {source}: its gate (0 is aggressive, 1 conservative) {gate_course(gates.mean(0))}.",
        *actuators(columns, Actuators._fields),
        *agreement(gates),
    ]


def no_gate() -> str:
    """What there is to say of a policy without a gate."""
    return "It has no gate, so that it is the same from the first step to the last."


# Courses -----------------------------------------------------------------------------------


def thirds(trajectory: np.ndarray) -> tuple[float, float, float]:
    """Means of the first, second and last third of float[steps]."""
    if len(trajectory) < 3:
        trajectory = np.repeat(trajectory, 3)
    return tuple(float(part.mean()) for part in np.array_split(trajectory, 3))


def course(trajectory: np.ndarray, still: float, form: str = ".2f") -> str:
    """How a trajectory goes: 'falls from 1.17 early through 1.01 to 0.84 late'.

    Args:
      trajectory: float[steps].
      still: below this range it does not move.
      form: of numbers.
    """
    low, high = float(trajectory.min()), float(trajectory.max())
    if high - low < still:
        return f"stands still at {float(trajectory.mean()):{form}}"
    first, middle, last = thirds(trajectory)
    a, b, c = (f"{x:{form}}" for x in (first, middle, last))
    if max(first, middle, last) - min(first, middle, last) < still:
        return (
            f"stays around {float(trajectory.mean()):{form}} in every third, "
            f"between {low:{form}} and {high:{form}}"
        )
    if (middle - first) * (last - middle) >= 0:
        verb = "rises" if last > first else "falls"
        return f"{verb} from {a} early through {b} in the middle to {c} late"
    verb, then = ("rises", "falls") if middle > first else ("falls", "rises")
    return f"{verb} from {a} early to {b} in the middle and {then} to {c} late"


def gate_course(gate: np.ndarray) -> str:
    """How a gate goes, and how far; float[steps]."""
    low, high = float(gate.min()), float(gate.max())
    words = course(gate, STILL)
    if high - low < STILL:
        return words
    return f"{words}; it moves by {high - low:.2f}, between {low:.2f} and {high:.2f}"


def actuators(columns: Sequence[Columns], names: Sequence[str]) -> list[str]:
    """How actuators go, as means over runs."""
    words = []
    for name in names:
        trajectory = np.mean([run[name] for run in columns], axis=0, dtype=np.float64)
        form = ".3f" if name.endswith("beta") else ".2f"
        words.append(f"{_NAMES[name]} {course(trajectory, _still(trajectory), form)}")
    return [f"With it {_listed(words)}."] if words else []


def _still(trajectory: np.ndarray) -> float:
    return max(_STILL_SHARE * abs(float(trajectory.mean())), 1e-9)


def crossing_steps(gate: np.ndarray) -> list[int]:
    """Steps, counted from 1, at which a gate is first on the other side of 0.5; float[steps]."""
    above = gate >= 0.5
    return [int(i) + 2 for i in np.flatnonzero(above[1:] != above[:-1])]


def crossings(gate: np.ndarray) -> str:
    """When a gate crosses 0.5, as a step and as a share of the run; float[steps]."""
    steps, total = crossing_steps(gate), len(gate)
    if not steps:
        side = "above" if gate[0] >= 0.5 else "below"
        return f"It stays {side} 0.5, the middle between its poles, throughout."
    when = [f"step {step} of {total} ({step / total:.0%} of the run)" for step in steps]
    if len(steps) == 1:
        way = "upwards" if gate[-1] >= 0.5 else "downwards"
        return f"It crosses 0.5, the middle between its poles, {way} at {when[0]}."
    return (
        f"It crosses 0.5, the middle between its poles, {len(steps)} times, first at {when[0]}, "
        f"last at {when[-1]}."
    )


# What drives the gate ----------------------------------------------------------------------


def mean_shares(columns: Sequence[Columns], spec: OptimizerSpec) -> dict[str, float]:
    """Each sensor's share of the drive's variance, a mean over runs; largest size first."""
    each = [drive_shares(run, spec) for run in columns]
    shares = {name: float(np.mean([share[name] for share in each])) for name in Sensors._fields}
    return dict(sorted(shares.items(), key=lambda item: -abs(item[1])))


def drivers(columns: Sequence[Columns], spec: OptimizerSpec) -> list[str]:
    """What moves the gate, and whether that is the calendar."""
    if only_calendar(spec):
        return ["It reads nothing but the share of the run: a schedule could do all it does."]
    shares = {n: x for n, x in mean_shares(columns, spec).items() if abs(x) >= _MINOR}
    if not shares:
        return ["Nothing drives its gate: what it senses does not change."]
    listed = _listed(
        [
            f"{_sensor(name)} {x:.0%}{' (against the rest)' if x < 0 else ''}"
            for name, x in shares.items()
        ]
    )
    return [f"What drives its gate: {listed}; {_calendar(shares)}."]


def _sensor(name: str) -> str:
    return short_name(f"control.coefficients.{name}")


def only_calendar(spec: OptimizerSpec) -> bool:
    """Whether the share of the run is all that a gate reads."""
    weights = spec.control.coefficients
    return weights.step_fraction != 0 and not any(weights[:-1])


def _calendar(shares: Mapping[str, float]) -> str:
    calendar = shares.get("step_fraction", 0.0)
    sensed = sum(abs(x) for name, x in shares.items() if name != "step_fraction")
    if calendar >= _CALENDAR and sensed <= 1.0 - _CALENDAR:
        return "it follows the calendar, as a schedule does"
    if abs(calendar) <= 1.0 - _CALENDAR:
        return "it follows what it senses of training, not the calendar"
    return "it follows the calendar in part, and in part what it senses of training"


def scatter(gates: np.ndarray) -> float:
    """Standard deviation between runs, a mean over steps, of float[runs, steps]; two or more."""
    return float(gates.std(axis=0, ddof=1).mean())


def agreement(gates: np.ndarray) -> list[str]:
    """Whether a gate takes the same course on every seed; float[runs, steps]."""
    movement = float(np.ptp(gates.mean(0)))
    if movement < STILL:
        return []
    if len(gates) < 2:
        return [
            "One seed cannot show whether the gate answers its run or takes this course in all."
        ]
    apart = scatter(gates)
    start = f"Over {len(gates)} seeds its courses lie {apart:.3f} apart (standard deviation)"
    if apart < _REPEATS * movement:
        return [f"{start}, nearly the same every time, so that a schedule could replay it."]
    return [f"{start}: it differs from run to run."]


def _held(spec: OptimizerSpec, baseline: OptimizerSpec) -> list[str]:
    """Actuators that act and stand still under a gate, elsewhere than the baseline has them."""
    form = canonical(spec)
    if not form.control.enabled:
        return []
    poles, usual = form.control.aggressive, static_actuators(baseline)
    acting = {
        "update_multiplier": (form.update_multiplier * poles.update_multiplier, True),
        "trust_ratio_mix": (poles.trust_ratio_mix, bool(form.trust_ratio)),
        "second_moment_beta": (poles.second_moment_beta, bool(form.second_moment)),
        "orthogonal_mix": (poles.orthogonal_mix, bool(form.orthogonalize)),
    }
    moving = moving_actuators(form)
    words = [
        f"{_NAMES[name]} at {value:.4g} instead of {getattr(usual, name):.4g}"
        for name, (value, acts) in acting.items()
        if acts and name not in moving and value != getattr(usual, name)
    ]
    return [f"Throughout it holds {_listed(words)}."] if words else []


def _listed(words: Sequence[str]) -> str:
    """'a, b and c'."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
