"""The optimizer policy as a pytree of numbers, and the tables that describe its parts.

Every leaf of an `OptimizerSpec` is a number, including switches, so a single compiled program can
run any spec. The tables `SENSORS`, `ACTUATORS` and `FIELDS` have a row for each sensor, each
actuator and each leaf. Validation, mutation, code generation, exports, reports and documentation
use these tables.
"""

from typing import Any, NamedTuple


class Sensors(NamedTuple):
    """One value per sensor, in the order of `SENSORS`."""

    loss_ema: Any
    loss_improvement_ema: Any
    grad_norm_ema: Any
    update_ratio_ema: Any
    grad_alignment_ema: Any
    step_fraction: Any


class Actuators(NamedTuple):
    """One value per actuator, in the order of `ACTUATORS`."""

    update_multiplier: Any
    trust_ratio_mix: Any
    clip_threshold: Any
    second_moment_beta: Any
    orthogonal_mix: Any


class Knobs(NamedTuple):
    """Actuators, momentum and switches that the update direction of a matrix depends on."""

    update_multiplier: Any
    trust_ratio_mix: Any
    clip_threshold: Any
    second_moment_beta: Any
    orthogonal_mix: Any
    momentum: Any  # coefficient at this step, on its schedule
    nesterov: Any  # bool
    momentum_placement: Any  # int32, an index into PLACEMENTS
    orthogonalize: Any  # bool
    ns_steps: Any  # int32
    second_moment: Any  # bool


class StatefulControl(NamedTuple):
    """The gate: `sigmoid(sharpness * (bias + sum(coefficients * sensors)))`.

    A gate of 0 sets every actuator to its value in `aggressive`, and a gate of 1 to its value in
    `conservative`.
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
    """A policy for matrix parameters. `FIELDS` describes the meaning and range of every leaf."""

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


class Sensor(NamedTuple):
    """One row of `SENSORS`."""

    signals: tuple[str, ...]  # fields of `sensors.Signals` whose averages it uses
    normaliser: float | None  # default raw value at which it saturates; None: it is not squashed
    coefficient: float  # default weight in the gate
    meaning: str


class Actuator(NamedTuple):
    """One row of `ACTUATORS`."""

    default: float  # value with the same effect as in the baseline
    low: float  # lower bound, inclusive
    high: float  # upper bound, inclusive
    aggressive: float  # default pole at a gate of 0
    conservative: float  # default pole at a gate of 1
    meaning: str
    phrase: str  # name for use in a sentence
    unit: str  # unit of its axis in figures
    mutation: str  # kind of mutation of its poles, a key of `mutations.MOVES`
    field: str | None = None  # spec field that sets its value while the gate is off
    stage: str | None = None  # switch of the stage that uses it; None: it is always used
    scales_field: bool = False  # whether its value multiplies `field` instead of replacing it
    changes_operations: bool = False  # whether its poles decide which operations are computed


# Normalisers are raw values from a baseline run. `python -m benchmarks.sensors` measures them and
# writes results/sensors.json. The default gate depends only on the step fraction. It is aggressive
# in the first half of a run and conservative in the second half.
SENSORS = Sensors(
    loss_ema=Sensor(
        ("log_loss",), 0.5, 0.0, "share of the first loss by which the mean loss has fallen"
    ),
    loss_improvement_ema=Sensor(
        ("log_loss", "log_step"),
        0.25,
        0.0,
        "slope of the loss in log-log coordinates, positive while it falls",
    ),
    grad_norm_ema=Sensor(
        ("log_grad_norm",), 0.5, 0.0, "log of the recent gradient norm minus that of the older one"
    ),
    update_ratio_ema=Sensor(
        ("log_update_ratio",),
        0.4,
        0.0,
        "log of update norm over parameter norm, recent minus older",
    ),
    grad_alignment_ema=Sensor(
        ("alignment",), 0.5, 0.0, "mean cosine between consecutive gradients"
    ),
    step_fraction=Sensor((), None, 1.0, "share of the run that has passed"),
)
TRAINING_SENSORS = tuple(
    name for name, row in SENSORS._asdict().items() if row.normaliser is not None
)
"""Sensors of the state of training; a schedule could compute the others."""

ACTUATORS = Actuators(
    update_multiplier=Actuator(
        default=1.0,
        low=0.1,
        high=4.0,
        aggressive=1.2,
        conservative=0.8,
        meaning="factor on the update",
        phrase="the update multiplier",
        unit="factor",
        mutation="scale",
        field="update_multiplier",
        scales_field=True,
    ),
    trust_ratio_mix=Actuator(
        default=0.0,
        low=0.0,
        high=1.0,
        aggressive=0.0,
        conservative=1.0,
        meaning="share of the trust ratio in the scale of the update, from none to all of it",
        phrase="the share of the trust ratio",
        unit="share",
        mutation="shift",
        field="trust_ratio",
        stage="trust_ratio",
    ),
    clip_threshold=Actuator(
        default=1.0,
        low=0.1,
        high=10.0,
        aggressive=2.0,
        conservative=0.5,
        meaning="limit of the update's RMS or of the gradient norm",
        phrase="the clip threshold",
        unit="threshold",
        mutation="scale",
        field="clip_threshold",
        stage="clip",
    ),
    second_moment_beta=Actuator(
        default=0.9,
        low=0.5,
        high=0.999,
        aggressive=0.9,
        conservative=0.95,
        meaning="decay of the second moment",
        phrase="the second-moment decay",
        unit="decay",
        mutation="memory",
        field="second_moment_beta",
        stage="second_moment",
    ),
    orthogonal_mix=Actuator(
        default=1.0,
        low=0.0,
        high=1.0,
        aggressive=1.0,
        conservative=1.0,
        meaning="share of the orthogonal factor; the rest is the normalised momentum",
        phrase="the share of the orthogonal direction",
        unit="share",
        mutation="shift",
        stage="orthogonalize",
        changes_operations=True,
    ),
)


class Field(NamedTuple):
    """One row of `FIELDS`.

    A field is a number or a switch. Only a switch has `choices`. A spec represents it by an index
    into `choices`, and JSON by the word.
    """

    default: float | int
    low: float  # lower bound, inclusive
    high: float  # upper bound, inclusive
    meaning: str
    choices: tuple[str, ...] = ()
    integer: bool = False
    changes_operations: bool = False  # whether its value decides which operations are computed
    phrase: str = ""  # name for use in a sentence
    effects: tuple[str, ...] = ()  # per choice, the rest of a sentence that begins with "It"


def _switch(
    default: str, choices: tuple[str, ...], meaning: str, effects: tuple[str, ...] = ()
) -> Field:
    index, last = choices.index(default), len(choices) - 1
    return Field(index, 0, last, meaning, choices, integer=True, effects=effects)


OFF_ON = ("off", "on")
PLACEMENTS = ("pre", "post")
CLIPS = ("none", "update_rms", "global_norm")
DECAYS = ("none", "decoupled", "cautious")
PRE, POST = range(2)
CLIP_NONE, CLIP_UPDATE_RMS, CLIP_GLOBAL_NORM = range(3)
DECAY_NONE, DECAY_DECOUPLED, DECAY_CAUTIOUS = range(3)


def _poles(pole: str) -> dict[str, Field]:
    return {
        f"control.{pole}.{name}": Field(
            getattr(row, pole),
            row.low,
            row.high,
            f"{pole} pole: {row.meaning}",
            changes_operations=row.changes_operations,
        )
        for name, row in ACTUATORS._asdict().items()
    }


FIELDS: dict[str, Field] = {
    "momentum": Field(
        0.97, 0.0, 0.99, "plateau of the scheduled momentum coefficient", phrase="the momentum"
    ),
    "nesterov": _switch(
        "on",
        OFF_ON,
        "look ahead along the momentum",
        ("uses plain momentum", "uses Nesterov momentum"),
    ),
    "momentum_placement": _switch(
        "pre",
        PLACEMENTS,
        "momentum before or after the direction",
        (
            "applies momentum to gradients, before the update direction is computed",
            "applies momentum to update directions, after each gradient is transformed",
        ),
    ),
    "orthogonalize": _switch(
        "on",
        OFF_ON,
        "Polar Express, or the normalised momentum alone",
        ("uses the normalised momentum", "uses the orthogonalised momentum"),
    ),
    "ns_steps": Field(
        *(5, 1, 5, "Polar Express iterations"),
        integer=True,
        phrase="the number of Polar Express iterations",
    ),
    "second_moment": _switch(
        "on",
        OFF_ON,
        "factored second moment (NorMuon)",
        ("uses no second moment", "divides by a factored second moment"),
    ),
    "second_moment_beta": Field(
        0.9, 0.5, 0.999, "decay of the second moment", phrase="the second-moment decay"
    ),
    "trust_ratio": _switch("off", OFF_ON, "layerwise trust ratio (LARS)"),
    "trust_ratio_min": Field(0.1, 0.01, 1.0, "lower clamp of the ratio"),
    "trust_ratio_max": Field(10.0, 1.0, 100.0, "upper clamp of the ratio"),
    "clip": _switch("none", CLIPS, "limit each update's RMS, or the global gradient norm"),
    "clip_threshold": Field(
        1.0, 0.1, 10.0, "limit, in RMS of an orthogonal update or in running mean gradient norms"
    ),
    "decay": _switch(
        "cautious",
        DECAYS,
        "weight decay; cautious only where the update agrees",
        (
            "applies no weight decay",
            "applies weight decay to every weight",
            "applies weight decay only where update and weight have the same sign",
        ),
    ),
    "update_multiplier": Field(
        1.0, 0.1, 10.0, "factor on the update, not on the decay", phrase="the update multiplier"
    ),
    "control.enabled": _switch("off", OFF_ON, "let the gate move the actuators"),
    "control.ema_beta": Field(0.98, 0.5, 0.999, "decay of the averages at a horizon of 1000 steps"),
    "control.sharpness": Field(4.0, 0.1, 10.0, "slope of the gate"),
    "control.bias": Field(-0.5, -2.0, 2.0, "offset of the gate"),
    **{
        f"control.coefficients.{name}": Field(
            row.coefficient, -2.0, 2.0, f"weight of {name} in the gate"
        )
        for name, row in SENSORS._asdict().items()
    },
    **{
        f"control.normalisers.{name}": Field(
            getattr(SENSORS, name).normaliser, 1e-3, 100.0, f"raw value at which {name} saturates"
        )
        for name in TRAINING_SENSORS
    },
    **_poles("aggressive"),
    **_poles("conservative"),
}


def get_field(spec: OptimizerSpec, path: str) -> Any:
    """Returns a leaf of a spec.

    Args:
      spec: Policy of numbers or traced scalars.
      path: Path of the leaf such as `control.bias`, a key of `FIELDS`.
    """
    node = spec
    for name in path.split("."):
        node = getattr(node, name)
    return node


def set_field(spec: OptimizerSpec, path: str, value: Any) -> OptimizerSpec:
    """Returns a copy of a spec with another value of a leaf.

    Args:
      spec: Policy of numbers or traced scalars.
      path: Path of the leaf such as `control.bias`, a key of `FIELDS`.
      value: New value; a number or a traced scalar.
    """
    name, _, rest = path.partition(".")
    if rest:
        value = set_field(getattr(spec, name), rest, value)
    return spec._replace(**{name: value})


def build_spec(values: dict[str, float | int]) -> OptimizerSpec:
    """Builds a spec without checking its values.

    Args:
      values: Value for every path of `FIELDS`.

    Returns:
      The spec.
    """

    def group(kind, prefix):
        # A sensor that is not squashed has a normaliser of 1, which is not a field.
        return kind(**{n: values.get(f"{prefix}.{n}", 1.0) for n in kind._fields})

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
    """Returns the presets, with the momentum and the second-moment decay of a tuned baseline.

    The aggressive pole has the baseline's second-moment decay. The conservative pole has twice the
    memory `1 / (1 - beta)`, up to the bound of the field.

    Args:
      baseline: Spec of the tuned baseline.

    Returns:
      Specs by the name of the preset.
    """
    if baseline == NANOCHAT:
        return dict(PRESETS)
    beta = baseline.second_moment_beta
    tuned = {"momentum": baseline.momentum, "second_moment_beta": beta}
    presets = {name: spec._replace(**tuned) for name, spec in PRESETS.items()}
    longer = min(1.0 - (1.0 - beta) / 2.0, FIELDS["second_moment_beta"].high)
    for pole, value in (("aggressive", beta), ("conservative", longer)):
        path = f"control.{pole}.second_moment_beta"
        presets = {name: set_field(spec, path, value) for name, spec in presets.items()}
    return presets
