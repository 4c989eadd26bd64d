"""The optimizer policy as a pytree of numbers, and the one table of its fields.

Every leaf of an `OptimizerSpec` is a number, switches included, so one compiled program runs
any spec. `FIELDS` is what validation, mutation and documentation read: a field that is not in
the table does not exist.
"""

from typing import Any, NamedTuple


class Sensors(NamedTuple):
    """One number for each of the six things a policy can sense."""

    loss_ema: Any
    loss_improvement_ema: Any
    grad_norm_ema: Any
    update_ratio_ema: Any
    grad_alignment_ema: Any
    step_fraction: Any


class Actuators(NamedTuple):
    """One number for each of the five things a gate can move."""

    update_multiplier: Any
    trust_ratio_mix: Any
    clip_threshold: Any
    second_moment_beta: Any
    orthogonal_mix: Any


class StatefulControl(NamedTuple):
    """The gate: `sigmoid(sharpness * (bias + sum(coefficients * sensors)))`.

    A gate of 0 puts every actuator at its `aggressive` pole, a gate of 1 at `conservative`.
    """

    enabled: Any
    ema_beta: Any
    sharpness: Any
    bias: Any
    coefficients: Sensors
    normalisers: Sensors
    aggressive: Actuators
    conservative: Actuators


class OptimizerSpec(NamedTuple):
    """A policy for matrix parameters; see `FIELDS` for the meaning and range of every leaf."""

    momentum: Any
    nesterov: Any
    momentum_placement: Any
    orthogonalize: Any
    ns_steps: Any
    second_moment: Any
    second_moment_beta: Any
    trust_ratio: Any
    trust_ratio_min: Any
    trust_ratio_max: Any
    clip: Any
    clip_threshold: Any
    decay: Any
    update_multiplier: Any
    control: StatefulControl


class Field(NamedTuple):
    """One row of the table.

    `choices` is empty for a number; otherwise the stored number is an index into it and JSON
    spells the word. `low` and `high` are hard bounds, both included.
    """

    default: float | int
    low: float
    high: float
    meaning: str
    choices: tuple[str, ...] = ()
    integer: bool = False


def _switch(default: str, choices: tuple[str, ...], meaning: str) -> Field:
    return Field(choices.index(default), 0, len(choices) - 1, meaning, choices, integer=True)


OFF_ON = ("off", "on")
PLACEMENTS = ("pre", "post")
CLIPS = ("none", "update_rms", "global_norm")
DECAYS = ("none", "decoupled", "cautious")
PRE, POST = range(2)
CLIP_NONE, CLIP_UPDATE_RMS, CLIP_GLOBAL_NORM = range(3)
DECAY_NONE, DECAY_DECOUPLED, DECAY_CAUTIOUS = range(3)

# Raw sensor values under the baseline saturate here: `python -m benchmarks.sensors` measures
# them and results/sensors.json keeps what it found.
_NORMALISERS = Sensors(0.5, 0.25, 0.5, 0.4, 0.5, 1.0)
# The default gate anneals: aggressive in the first half of the run, conservative in the second.
_COEFFICIENTS = Sensors(0.0, 0.0, 0.0, 0.0, 0.0, 1.0)

ACTUATOR_RANGES = Actuators(
    update_multiplier=Field(1.0, 0.1, 4.0, "factor on top of update_multiplier"),
    trust_ratio_mix=Field(0.0, 0.0, 1.0, "0: no trust ratio, 1: all of it"),
    clip_threshold=Field(1.0, 0.1, 10.0, "replaces clip_threshold"),
    second_moment_beta=Field(0.9, 0.5, 0.999, "replaces second_moment_beta"),
    orthogonal_mix=Field(1.0, 0.0, 1.0, "0: normalised momentum, 1: its orthogonal factor"),
)
_AGGRESSIVE = Actuators(1.2, 0.0, 2.0, 0.9, 1.0)
_CONSERVATIVE = Actuators(0.8, 1.0, 0.5, 0.95, 1.0)


def _poles(pole: str, defaults: Actuators) -> dict[str, Field]:
    return {
        f"control.{pole}.{name}": row._replace(
            default=default, meaning=f"{pole} pole: {row.meaning}"
        )
        for name, row, default in zip(Actuators._fields, ACTUATOR_RANGES, defaults, strict=True)
    }


FIELDS: dict[str, Field] = {
    "momentum": Field(0.97, 0.0, 0.99, "plateau of the scheduled momentum coefficient"),
    "nesterov": _switch("on", OFF_ON, "look ahead along the momentum"),
    "momentum_placement": _switch("pre", PLACEMENTS, "momentum before or after the direction"),
    "orthogonalize": _switch("on", OFF_ON, "Polar Express, or the normalised momentum alone"),
    "ns_steps": Field(5, 1, 5, "Polar Express iterations", integer=True),
    "second_moment": _switch("on", OFF_ON, "factored second moment (NorMuon)"),
    "second_moment_beta": Field(0.9, 0.5, 0.999, "its decay"),
    "trust_ratio": _switch("off", OFF_ON, "layerwise trust ratio (LARS)"),
    "trust_ratio_min": Field(0.1, 0.01, 1.0, "lower clamp of the ratio"),
    "trust_ratio_max": Field(10.0, 1.0, 100.0, "upper clamp of the ratio"),
    "clip": _switch("none", CLIPS, "limit each update's RMS, or the global gradient norm"),
    "clip_threshold": Field(
        1.0, 0.1, 10.0, "in RMS of an orthogonal update, or in running mean gradient norms"
    ),
    "decay": _switch("cautious", DECAYS, "weight decay; cautious only where the update agrees"),
    "update_multiplier": Field(1.0, 0.1, 10.0, "factor on the update, not on the decay"),
    "control.enabled": _switch("off", OFF_ON, "let the gate move the actuators"),
    "control.ema_beta": Field(0.98, 0.5, 0.999, "sensor averaging at a horizon of 1000 steps"),
    "control.sharpness": Field(4.0, 0.1, 10.0, "slope of the gate"),
    "control.bias": Field(-0.5, -2.0, 2.0, "offset of the gate"),
    **{
        f"control.coefficients.{name}": Field(default, -2.0, 2.0, f"weight of {name} in the gate")
        for name, default in zip(Sensors._fields, _COEFFICIENTS, strict=True)
    },
    **{
        f"control.normalisers.{name}": Field(
            default, 1e-3, 100.0, f"raw value at which {name} saturates"
        )
        for name, default in zip(Sensors._fields, _NORMALISERS, strict=True)
        if name != "step_fraction"  # already between 0 and 1
    },
    **_poles("aggressive", _AGGRESSIVE),
    **_poles("conservative", _CONSERVATIVE),
}


def get_field(spec: OptimizerSpec, path: str) -> Any:
    """Returns the leaf at a dotted path of `FIELDS`."""
    node = spec
    for name in path.split("."):
        node = getattr(node, name)
    return node


def set_field(spec: OptimizerSpec, path: str, value: Any) -> OptimizerSpec:
    """Returns a copy of the spec with one leaf replaced."""
    name, _, rest = path.partition(".")
    if rest:
        value = set_field(getattr(spec, name), rest, value)
    return spec._replace(**{name: value})


def build_spec(values: dict[str, float | int]) -> OptimizerSpec:
    """Builds a spec from a value for every path of `FIELDS`; nothing is checked here."""

    def group(kind, prefix):
        fixed = {"step_fraction": 1.0} if prefix == "control.normalisers" else {}
        return kind(**{n: values.get(f"{prefix}.{n}", fixed.get(n)) for n in kind._fields})

    control = StatefulControl(
        **{n: values[f"control.{n}"] for n in StatefulControl._fields[:4]},
        coefficients=group(Sensors, "control.coefficients"),
        normalisers=group(Sensors, "control.normalisers"),
        aggressive=group(Actuators, "control.aggressive"),
        conservative=group(Actuators, "control.conservative"),
    )
    return OptimizerSpec(**{n: values[n] for n in OptimizerSpec._fields[:-1]}, control=control)


NANOCHAT = build_spec({path: field.default for path, field in FIELDS.items()})
"""NanoChat's own optimizer, step for step: the baseline of every comparison."""

TRUST_RATIO = NANOCHAT._replace(trust_ratio=1)
"""The baseline with a layerwise trust ratio on every matrix."""

ANNEALING = set_field(NANOCHAT, "control.enabled", 1)
"""The baseline with a gate that moves from aggressive to conservative as steps pass."""

PRESETS: dict[str, OptimizerSpec] = {
    "nanochat": NANOCHAT,
    "trust_ratio": TRUST_RATIO,
    "annealing": ANNEALING,
}


def presets_on(baseline: OptimizerSpec) -> dict[str, OptimizerSpec]:
    """The presets on top of a baseline whose momentum and second moment were tuned.

    The poles of a gate keep their place around the baseline's second-moment decay: aggressive
    has its memory, conservative twice as long a one.
    """
    if baseline == NANOCHAT:
        return dict(PRESETS)
    beta = baseline.second_moment_beta
    tuned = {"momentum": baseline.momentum, "second_moment_beta": beta}
    found = {name: spec._replace(**tuned) for name, spec in PRESETS.items()}
    longer = min(1.0 - (1.0 - beta) / 2.0, FIELDS["second_moment_beta"].high)
    for pole, value in (("aggressive", beta), ("conservative", longer)):
        path = f"control.{pole}.second_moment_beta"
        found = {name: set_field(spec, path, value) for name, spec in found.items()}
    return found
