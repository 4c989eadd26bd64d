"""The parts of a policy that have an effect, which exported files contain."""

import math
from collections.abc import Collection
from typing import NamedTuple

from nanoevolve_jax.policy.canonical import canonical, moving_actuators
from nanoevolve_jax.policy.gate import blended_actuators, static_actuators
from nanoevolve_jax.policy.muon import POLAR_EXPRESS
from nanoevolve_jax.policy.sensors import Signals
from nanoevolve_jax.policy.slots import is_read
from nanoevolve_jax.policy.spec import (
    ACTUATORS,
    CLIP_GLOBAL_NORM,
    CLIPS,
    DECAYS,
    FIELDS,
    POST,
    SENSORS,
    TRAINING_SENSORS,
    Actuators,
    Knobs,
    OptimizerSpec,
    Sensors,
)

CALL_ORDER = ("features", "gate", "actuate", "direction")
SWITCHES = tuple(x for x in Knobs._fields if x not in (*Actuators._fields, "momentum"))
_DIGITS = 9  # significant digits of a product of two fields, more than float32 has


class Dial(NamedTuple):
    """The values of an actuator at both poles. They are equal if the gate does not move it."""

    aggressive: float
    conservative: float

    @property
    def moves(self) -> bool:
        """Returns whether the gate moves the actuator."""
        return self.aggressive != self.conservative


_UNKNOWN = Dial(0.0, 1.0)  # an actuator whose values the rewritten slot `actuate` computes


class Features(NamedTuple):
    """A policy, reduced to the parts that have an effect."""

    momentum: float  # plateau of the momentum coefficient
    nesterov: bool
    momentum_after: bool  # whether momentum follows the direction instead of preceding it
    polar_express: tuple[tuple[float, float, float], ...]  # coefficients of the iterations
    orthogonal: str  # use of the orthogonal factor: only, mixed or never
    second_moment: bool
    trust_ratio: tuple[float, float] | None  # lower and upper clamp
    clip: str  # none, update_rms or global_norm
    decay: str  # none, decoupled or cautious
    dials: Actuators  # a `Dial` per actuator
    acting: tuple[str, ...]  # actuators whose values the file needs
    sharpness: float
    bias: float
    weights: dict[str, float]  # coefficients of the sensors that the built-in gate uses
    sensed: tuple[str, ...]  # sensors that any function uses
    normalisers: dict[str, float]  # normalisers of those sensors that are squashed
    signals: tuple[str, ...]  # signals that are averaged
    ema_beta: float
    rewritten: tuple[str, ...]  # slots whose rewritten functions are called, in call order
    coefficients: dict[str, float]  # coefficients of all sensors, for a rewritten `gate`
    poles: tuple[Actuators, Actuators]  # aggressive and conservative, for a rewritten `actuate`
    multiplier: float  # update multiplier of the spec, for a rewritten `actuate`
    switches: dict[str, int]  # switches of the spec, for a rewritten `direction`

    @property
    def gate(self) -> bool:
        """Returns whether the gate is computed."""
        return bool(self.sensed) or "actuate" in self.rewritten

    @property
    def reads_loss(self) -> bool:
        """Returns whether the policy needs the loss of every step."""
        return "log_loss" in self.signals

    @property
    def counts_steps(self) -> bool:
        """Returns whether the policy depends on the number of the step."""
        return bool(self.sensed or self.signals)


def features_of(spec: OptimizerSpec, code: Collection[str] = ()) -> Features:
    """Reduces a policy to the parts that have an effect.

    Stages that are switched off, actuators without an effect, sensors with a coefficient of 0, and
    a gate that moves no actuator are left out. An actuator with equal poles becomes a constant. All
    arguments of a rewritten function are kept, because it may use any of them.

    Args:
      spec: Policy of concrete numbers.
      code: Names of the slots that are rewritten.

    Returns:
      The reduced policy.
    """
    rewritten = called(spec, code)
    spec = spec if rewritten else canonical(spec)
    control = spec.control
    moving = _moving(spec, rewritten)
    weights = {name: float(x) for name, x in control.coefficients._asdict().items() if x}
    if not moving or "gate" in rewritten:
        weights = {}
    reads_all = "gate" in rewritten or "features" in rewritten
    sensed = tuple(name for name in Sensors._fields if reads_all or name in weights)
    dials = _dials(spec, moving, bool(sensed))
    if "actuate" in rewritten:
        dials = Actuators(*[_UNKNOWN] * len(dials))
    signals = {signal for name in sensed for signal in getattr(SENSORS, name).signals}
    if spec.clip == CLIP_GLOBAL_NORM:
        signals.add("log_grad_norm")
    orthogonal = _orthogonal(spec, dials.orthogonal_mix)
    acting = _acting(spec, dials, "direction" in rewritten)
    if orthogonal == "never" and "direction" not in rewritten:
        acting = tuple(name for name in acting if name != "orthogonal_mix")
    return Features(
        momentum=float(spec.momentum),
        nesterov=bool(spec.nesterov),
        momentum_after=spec.momentum_placement == POST,
        polar_express=POLAR_EXPRESS[: int(spec.ns_steps)],
        orthogonal=orthogonal,
        second_moment=bool(spec.second_moment),
        trust_ratio=_trust_ratio(spec, dials.trust_ratio_mix),
        clip=CLIPS[int(spec.clip)],
        decay=DECAYS[int(spec.decay)],
        dials=dials,
        acting=acting,
        sharpness=float(control.sharpness),
        bias=float(control.bias),
        weights=weights,
        sensed=sensed,
        normalisers={
            name: float(getattr(control.normalisers, name))
            for name in sensed
            if name in TRAINING_SENSORS
        },
        signals=tuple(name for name in Signals._fields if name in signals),
        ema_beta=float(control.ema_beta),
        rewritten=rewritten,
        coefficients={name: float(x) for name, x in control.coefficients._asdict().items()},
        poles=(
            Actuators(*map(float, control.aggressive)),
            Actuators(*map(float, control.conservative)),
        ),
        multiplier=float(spec.update_multiplier),
        switches={name: int(getattr(spec, name)) for name in SWITCHES},
    )


def called(spec: OptimizerSpec, code: Collection[str]) -> tuple[str, ...]:
    """Returns the rewritten slots that affect a policy.

    Args:
      spec: Policy of concrete numbers.
      code: Names of the slots that are rewritten.

    Returns:
      Names of the slots that the policy calls and whose results have an effect, in call order.
    """
    read = {slot for slot in code if is_read(slot, spec)}
    if not _moving(spec, read):
        read -= {"gate", "features"}
    return tuple(slot for slot in CALL_ORDER if slot in read)


def _moving(spec: OptimizerSpec, code: Collection[str]) -> list[str]:
    """Returns the actuators that the gate may move."""
    control = spec.control
    if not control.enabled:
        return []
    if "actuate" in code:
        return list(Actuators._fields)
    if "direction" in code:  # it may use any actuator
        poles = zip(Actuators._fields, control.aggressive, control.conservative, strict=True)
        return [name for name, low, high in poles if low != high]
    return moving_actuators(canonical(spec))


def _dials(spec: OptimizerSpec, moving: Collection[str], senses: bool) -> Actuators:
    control = spec.control
    if not control.enabled:
        return Actuators(*(Dial(x, x) for x in map(float, static_actuators(spec))))
    ends = blended_actuators(spec, 0.0), blended_actuators(spec, 1.0)
    if not senses:  # the gate depends only on its bias
        gate = 1.0 / (1.0 + math.exp(-control.sharpness * control.bias))
        ends = (blended_actuators(spec, gate),) * 2
    dials = {
        name: Dial(_product(low), _product(high if name in moving else low))
        for name, low, high in zip(Actuators._fields, *ends, strict=True)
    }
    return Actuators(**dials)


def _product(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _acting(spec: OptimizerSpec, dials: Actuators, rewritten_direction: bool) -> tuple[str, ...]:
    """Returns the actuators whose values the exported file needs."""

    def acts(name: str) -> bool:
        row, dial = getattr(ACTUATORS, name), getattr(dials, name)
        replaces = row.field and not FIELDS[row.field].choices and not row.scales_field
        is_neutral = not replaces and dial == Dial(row.default, row.default)
        return (row.stage is None or bool(getattr(spec, row.stage))) and not is_neutral

    return tuple(name for name in Actuators._fields if rewritten_direction or acts(name))


def _orthogonal(spec: OptimizerSpec, mix: Dial) -> str:
    if not spec.orthogonalize or mix == Dial(0.0, 0.0):
        return "never"
    return "only" if mix == Dial(1.0, 1.0) else "mixed"


def _trust_ratio(spec: OptimizerSpec, mix: Dial) -> tuple[float, float] | None:
    if not spec.trust_ratio or mix == Dial(0.0, 0.0):
        return None
    return float(spec.trust_ratio_min), float(spec.trust_ratio_max)
