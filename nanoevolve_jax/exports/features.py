"""What a policy uses, and nothing of what it does not: what the exported files are made from."""

import math
from typing import NamedTuple

from nanoevolve_jax.policy.canonical import canonical, moving_actuators
from nanoevolve_jax.policy.gate import blended_actuators, static_actuators
from nanoevolve_jax.policy.muon import POLAR_EXPRESS
from nanoevolve_jax.policy.sensors import Signals
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
_DIGITS = 9  # of a product of two numbers of a spec: beyond what float32 holds


class Dial(NamedTuple):
    """Where an actuator stands: at both poles, which are equal if the gate does not move it."""

    aggressive: float
    conservative: float

    @property
    def moves(self) -> bool:
        return self.aggressive != self.conservative


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
    weights: dict[str, float]  # of the sensors that the gate reads; empty: there is no gate
    normalisers: dict[str, float]  # of the same, but for the step fraction
    signals: tuple[str, ...]  # whose averages are kept
    ema_beta: float

    @property
    def gate(self) -> bool:
        return bool(self.weights)

    @property
    def reads_loss(self) -> bool:
        return "log_loss" in self.signals

    @property
    def counts_steps(self) -> bool:
        """Whether anything depends on which step it is."""
        return bool(self.weights or self.signals)


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


def features_of(spec: OptimizerSpec) -> Features:
    """What a spec of concrete numbers comes down to.

    Stages that are switched off, actuators that never act, sensors without a weight and a gate
    that moves nothing are gone; an actuator that both poles put to one place is a constant.
    """
    spec = canonical(spec)
    control = spec.control
    moving = moving_actuators(spec) if control.enabled else []
    weights = {
        name: float(weight) for name, weight in control.coefficients._asdict().items() if weight
    }
    if not moving:
        weights = {}
    dials = _dials(spec, moving, bool(weights))
    normalisers = {name: float(getattr(control.normalisers, name)) for name in weights}
    normalisers.pop("step_fraction", None)
    used = {signal for name in weights for signal in _AVERAGED[name]}
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
        normalisers=normalisers,
        signals=tuple(name for name in Signals._fields if name in used),
        ema_beta=float(control.ema_beta),
    )


def _orthogonal(spec: OptimizerSpec, mix: Dial) -> str:
    if not spec.orthogonalize or mix == Dial(0.0, 0.0):
        return "never"
    return "only" if mix == Dial(1.0, 1.0) else "mixed"


def _trust_ratio(spec: OptimizerSpec, mix: Dial) -> tuple[float, float] | None:
    if not spec.trust_ratio or mix == Dial(0.0, 0.0):
        return None
    return float(spec.trust_ratio_min), float(spec.trust_ratio_max)
