"""The parts of a policy that may be rewritten as code: four pure functions and their contracts.

A policy is these functions with the numbers of a spec; everything around them is fixed. What the
rest of the package does with a rewritten function is in `certified.py`; the functions of the
baseline are in `built_in/` as sources, where rewriting starts.

All arguments and results are those of ONE matrix of ONE candidate. Stacks of matrices and lanes of
candidates are mapped over from outside, so that a rewritten function cannot see either.
"""

import ast
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nanoevolve_jax.policy.spec import Actuators, OptimizerSpec, Sensors

_BUILT_IN = Path(__file__).resolve().parent / "built_in"
EXTRA_SENSORS = 4
"""How many extra sensors `features` gives."""


class Knobs(NamedTuple):
    """What `direction` is told: the five actuators and the switches of the spec; scalars."""

    update_multiplier: Any  # applied outside, after the trust ratio
    trust_ratio_mix: Any  # applied outside
    clip_threshold: Any  # applied outside
    second_moment_beta: Any
    orthogonal_mix: Any
    momentum: Any  # coefficient at this step, on its schedule
    nesterov: Any  # bool
    momentum_placement: Any  # int32; 0: before the direction, 1: after it
    orthogonalize: Any  # bool
    ns_steps: Any  # int32
    second_moment: Any  # bool


class Control(NamedTuple):
    """What `gate` is told of the spec; scalars."""

    sharpness: Any
    bias: Any
    coefficients: Sensors


class Poles(NamedTuple):
    """Where a gate of 0 and a gate of 1 put the actuators; scalars."""

    aggressive: Actuators
    conservative: Actuators


class Slot(NamedTuple):
    """The contract of one function."""

    name: str
    scope: str  # 'matrix mathematics' or 'gating'
    parameters: tuple[str, ...]
    arguments: Callable[[tuple[int, int]], tuple[Any, ...]]  # abstract, of a matrix's shape
    results: Callable[[tuple[int, int]], tuple[Any, ...]]  # abstract and flat
    meaning: str


def _float(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _floats(kind: Any) -> Any:
    return kind(*[_float()] * len(kind._fields))


def second_moment_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """Shape of the factored second moment of a matrix: its longer side is kept."""
    inputs, outputs = shape
    return (1, outputs) if outputs >= inputs else (inputs, 1)


def _direction_arguments(shape: tuple[int, int]) -> tuple[Any, ...]:
    switch, count = jax.ShapeDtypeStruct((), jnp.bool), jax.ShapeDtypeStruct((), jnp.int32)
    knobs = _floats(Knobs)._replace(
        nesterov=switch,
        momentum_placement=count,
        orthogonalize=switch,
        ns_steps=count,
        second_moment=switch,
    )
    matrix = _float(*shape)
    return matrix, matrix, _float(*second_moment_shape(shape)), matrix, knobs


def _extra_sensors() -> tuple[Any, ...]:
    return (_float(),) * EXTRA_SENSORS


SLOTS: dict[str, Slot] = {
    slot.name: slot
    for slot in (
        Slot(
            "direction",
            "matrix mathematics",
            ("gradient", "momentum", "second_moment", "parameter", "knobs"),
            _direction_arguments,
            lambda shape: (_float(*shape), _float(*shape), _float(*second_moment_shape(shape))),
            "one matrix's gradient to its update, its new momentum and its new second moment",
        ),
        Slot(
            "gate",
            "gating",
            ("sensors", "features", "control"),
            lambda shape: (
                _floats(Sensors),
                _extra_sensors(),
                Control(_float(), _float(), _floats(Sensors)),
            ),
            lambda shape: (_float(),),
            "what is sensed to a gate in [0, 1]; 0 is aggressive, 1 conservative",
        ),
        Slot(
            "actuate",
            "gating",
            ("gate", "poles"),
            lambda shape: (_float(), Poles(_floats(Actuators), _floats(Actuators))),
            lambda shape: (_float(),) * len(Actuators._fields),
            "the gate to five actuators, in their order",
        ),
        Slot(
            "features",
            "gating",
            ("sensors",),
            lambda shape: (_floats(Sensors),),
            lambda shape: _extra_sensors(),
            f"the six sensors to {EXTRA_SENSORS} extra ones in [-1, 1], added to the gate's drive",
        ),
    )
}

SCOPES = {
    "matrix": ("direction",),
    "gating": ("gate", "actuate", "features"),
    # Which matrix goes where is decided in `direction`, which knows the shape while it is traced.
    "routing": ("direction",),
}
"""Slots by what a campaign is about."""

Shape = tuple[int, int] | None
SCALAR: Shape = None
"""The shape of a slot that knows of no matrix."""


def shape_key(shape: Shape) -> str:
    """A name for a shape: '64x256', or 'scalar'."""
    return "scalar" if shape is None else f"{shape[0]}x{shape[1]}"


def shapes_of(slot: str, matrices: Any) -> tuple[Shape, ...]:
    """The shapes a slot is compiled for, in ascending order.

    Args:
      slot: one of `SLOTS`.
      matrices: (inputs, outputs) of all matrices of a model.
    """
    if slot != "direction":
        return (SCALAR,)
    return tuple(sorted({(int(m), int(n)) for m, n in matrices}))


def knobs_of(spec: OptimizerSpec, actuators: Actuators, momentum: Any) -> Knobs:
    """What `direction` is told under a spec whose gate has moved the actuators."""
    return Knobs(
        **actuators._asdict(),
        momentum=momentum,
        nesterov=spec.nesterov,
        momentum_placement=spec.momentum_placement,
        orthogonalize=spec.orthogonalize,
        ns_steps=spec.ns_steps,
        second_moment=spec.second_moment,
    )


def control_of(spec: OptimizerSpec) -> Control:
    """What `gate` is told of a spec."""
    control = spec.control
    return Control(control.sharpness, control.bias, control.coefficients)


def poles_of(spec: OptimizerSpec) -> Poles:
    """What `actuate` is told of a spec."""
    return Poles(spec.control.aggressive, spec.control.conservative)


def is_read(slot: str, spec: OptimizerSpec) -> bool:
    """Whether a spec uses a slot at all: without a gate only `direction` counts."""
    return slot == "direction" or bool(spec.control.enabled)


class Slots(NamedTuple):
    """Functions in the place of the built-in ones; None: the built-in one.

    direction(gradient, momentum, second_moment, parameter, knobs) on [..., inputs, outputs]
      -> (update, momentum, second_moment)
    gate(sensors, features, control) -> scalar in [0, 1]
    actuate(gate, poles) -> Actuators within their bounds
    features(sensors) -> tuple of `EXTRA_SENSORS` scalars in [-1, 1]
    """

    direction: Callable[..., Any] | None = None
    gate: Callable[..., Any] | None = None
    actuate: Callable[..., Any] | None = None
    features: Callable[..., Any] | None = None


BUILT_IN = Slots()


@functools.cache
def built_in_source(slot: str) -> str:
    """Returns the source of a slot's built-in function, in the layout in which sources are kept."""
    text = (_BUILT_IN / f"{slot}.py").read_text(encoding="utf-8")
    return ast.unparse(ast.parse(text)) + "\n"
