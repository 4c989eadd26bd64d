"""What a policy uses, and nothing of what it does not: what the exported files are made from."""

import math
from collections.abc import Collection
from typing import NamedTuple

from nanoevolve_jax.policy.canonical import canonical, moving_actuators
from nanoevolve_jax.policy.gate import blended_actuators, static_actuators
from nanoevolve_jax.policy.muon import POLAR_EXPRESS
from nanoevolve_jax.policy.sensors import Signals
from nanoevolve_jax.policy.slots import Knobs, is_read
from nanoevolve_jax.policy.spec import (
    CLIP_GLOBAL_NORM,
    CLIPS,
    DECAYS,
    POST,
    Actuators,
    OptimizerSpec,
    Sensors,
)

# What each sensor averages, and what else it remembers.
_AVERAGED = {
    "loss_ema": ("log_loss",),
    "loss_improvement_ema": ("log_loss", "log_step"),
    "grad_norm_ema": ("log_grad_norm",),
    "update_ratio_ema": ("log_update_ratio",),
    "grad_alignment_ema": ("alignment",),
    "step_fraction": (),
}
_IN_ORDER = ("features", "gate", "actuate", "direction")
SWITCHES = tuple(x for x in Knobs._fields if x not in (*Actuators._fields, "momentum"))
_DIGITS = 9  # of a product of two numbers of a spec: beyond what float32 holds


class Dial(NamedTuple):
    """Where an actuator stands: at both poles, which are equal if the gate does not move it."""

    aggressive: float
    conservative: float

    @property
    def moves(self) -> bool:
        return self.aggressive != self.conservative


_ANYWHERE = Dial(0.0, 1.0)  # an actuator that `actuate` puts where it likes


class Features(NamedTuple):
    """One policy, reduced to what has an effect."""

    momentum: float  # on its plateau
    nesterov: bool
    momentum_after: bool  # the direction, and not before it
    polar_express: tuple[tuple[float, float, float], ...]  # the iterations that are used
    orthogonal: str  # only, mixed or never
    second_moment: bool
    trust_ratio: tuple[float, float] | None  # its clamp
    clip: str  # none, update_rms or global_norm
    decay: str  # none, decoupled or cautious
    dials: Actuators  # of Dial
    sharpness: float
    bias: float
    weights: dict[str, float]  # of the sensors that the built-in gate reads
    sensed: tuple[str, ...]  # the sensors that anything reads
    normalisers: dict[str, float]  # of the same, but for the step fraction
    signals: tuple[str, ...]  # whose averages are kept
    ema_beta: float
    rewritten: tuple[str, ...]  # slots with code that is called; its functions are in the file
    control: dict[str, float]  # every weight, for a gate that is rewritten
    poles: tuple[Actuators, Actuators]  # aggressive and conservative, for `actuate`
    multiplier: float  # of the spec, on what `actuate` says
    switches: dict[str, int]  # what the spec tells `direction`

    @property
    def gate(self) -> bool:
        return bool(self.sensed) or "actuate" in self.rewritten

    @property
    def reads_loss(self) -> bool:
        return "log_loss" in self.signals

    @property
    def counts_steps(self) -> bool:
        """Whether anything depends on which step it is."""
        return bool(self.sensed or self.signals)


def _product(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _dials(spec: OptimizerSpec, moving: list[str], senses: bool) -> Actuators:
    control = spec.control
    if not control.enabled:
        return Actuators(*(Dial(x, x) for x in map(float, static_actuators(spec))))
    ends = blended_actuators(spec, 0.0), blended_actuators(spec, 1.0)
    if not senses:  # the gate stands where its bias puts it
        gate = 1.0 / (1.0 + math.exp(-control.sharpness * control.bias))
        ends = (blended_actuators(spec, gate),) * 2
    dials = {
        name: Dial(_product(low), _product(high if name in moving else low))
        for name, low, high in zip(Actuators._fields, *ends, strict=True)
    }
    return Actuators(**dials)


def features_of(spec: OptimizerSpec, code: Collection[str] = ()) -> Features:
    """What a spec of concrete numbers comes down to.

    Stages that are switched off, actuators that never act, sensors without a weight and a gate
    that moves nothing are gone; an actuator that both poles put to one place is a constant.
    Rewritten functions may read whatever they are given, and nobody knows what they do not read.

    Args:
      spec: the policy.
      code: the slots that are rewritten.
    """
    rewritten = called(spec, code)
    spec = spec if rewritten else canonical(spec)
    control = spec.control
    moving = _moving(spec, rewritten)
    weights = {
        name: float(weight) for name, weight in control.coefficients._asdict().items() if weight
    }
    if not moving or "gate" in rewritten:
        weights = {}
    all_sensed = "gate" in rewritten or "features" in rewritten
    sensed = tuple(name for name in Sensors._fields if all_sensed or name in weights)
    dials = _dials(spec, moving, bool(sensed))
    if "actuate" in rewritten:
        dials = Actuators(*[_ANYWHERE] * len(dials))
    normalisers = {name: float(getattr(control.normalisers, name)) for name in sensed}
    normalisers.pop("step_fraction", None)
    used = {signal for name in sensed for signal in _AVERAGED[name]}
    if spec.clip == CLIP_GLOBAL_NORM:
        used.add("log_grad_norm")
    return Features(
        momentum=float(spec.momentum),
        nesterov=bool(spec.nesterov),
        momentum_after=spec.momentum_placement == POST,
        polar_express=POLAR_EXPRESS[: int(spec.ns_steps)],
        orthogonal=_orthogonal(spec, dials.orthogonal_mix),
        second_moment=bool(spec.second_moment),
        trust_ratio=_trust_ratio(spec, dials.trust_ratio_mix),
        clip=CLIPS[int(spec.clip)],
        decay=DECAYS[int(spec.decay)],
        dials=dials,
        sharpness=float(control.sharpness),
        bias=float(control.bias),
        weights={name: weights[name] for name in Sensors._fields if name in weights},
        sensed=sensed,
        normalisers=normalisers,
        signals=tuple(name for name in Signals._fields if name in used),
        ema_beta=float(control.ema_beta),
        rewritten=rewritten,
        control={name: float(x) for name, x in control.coefficients._asdict().items()},
        poles=tuple(Actuators(*map(float, x)) for x in (control.aggressive, control.conservative)),
        multiplier=float(spec.update_multiplier),
        switches={name: int(getattr(spec, name)) for name in SWITCHES},
    )


def called(spec: OptimizerSpec, code: Collection[str]) -> tuple[str, ...]:
    """The rewritten slots whose functions a policy calls and whose results act; in call order."""
    read = {slot for slot in code if is_read(slot, spec)}
    if not _moving(spec, read):
        read -= {"gate", "features"}
    return tuple(slot for slot in _IN_ORDER if slot in read)


def _moving(spec: OptimizerSpec, code: Collection[str]) -> list[str]:
    """Actuators that the gate moves, as far as is known."""
    control = spec.control
    if not control.enabled:
        return []
    if "actuate" in code:
        return list(Actuators._fields)
    if "direction" in code:  # it is told all of them
        poles = zip(Actuators._fields, control.aggressive, control.conservative, strict=True)
        return [name for name, low, high in poles if low != high]
    return moving_actuators(canonical(spec))


def _orthogonal(spec: OptimizerSpec, mix: Dial) -> str:
    if not spec.orthogonalize or mix == Dial(0.0, 0.0):
        return "never"
    return "only" if mix == Dial(1.0, 1.0) else "mixed"


def _trust_ratio(spec: OptimizerSpec, mix: Dial) -> tuple[float, float] | None:
    if not spec.trust_ratio or mix == Dial(0.0, 0.0):
        return None
    return float(spec.trust_ratio_min), float(spec.trust_ratio_max)
