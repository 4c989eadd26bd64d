"""Mutation operators, each of which changes exactly one field within its bounds."""

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np

from nanoevolve_jax.errors import UserError
from nanoevolve_jax.policy.canonical import canonical
from nanoevolve_jax.policy.spec import (
    ACTUATORS,
    FIELDS,
    OptimizerSpec,
    Sensors,
    get_field,
    set_field,
)
from nanoevolve_jax.policy.spec_json import field_to_json

Operator = Callable[[OptimizerSpec, np.random.Generator], OptimizerSpec]
_MAX_DRAWS = 300
_DIGITS = 4  # significant digits of a mutated number


class Mutation(NamedTuple):
    """A child policy and its difference from the parent."""

    spec: OptimizerSpec
    operator: str
    change: str  # "control.bias -0.5 -> -0.25"


class ExhaustedError(UserError):
    """An error raised if every drawn child has no effect or equals an earlier candidate."""


def _other_choice(path: str) -> Operator:
    """Returns an operator that sets a switch to another value."""

    def operator(spec, rng):
        field = FIELDS[path]
        others = [v for v in range(len(field.choices)) if v != get_field(spec, path)]
        return set_field(spec, path, int(rng.choice(others)))

    return operator


def _bounded(path: str, value: float) -> float:
    field = FIELDS[path]
    return float(np.clip(float(f"{value:.{_DIGITS}g}"), field.low, field.high))


def _scale(path: str, spread: float) -> Operator:
    """Returns an operator that multiplies a field by a log-normal factor."""

    def operator(spec, rng):
        value = get_field(spec, path) * float(np.exp(rng.normal(0.0, spread)))
        return set_field(spec, path, _bounded(path, value))

    return operator


def _shift(path: str, spread: float) -> Operator:
    """Returns an operator that adds a normally distributed step to a field."""

    def operator(spec, rng):
        value = get_field(spec, path) + float(rng.normal(0.0, spread))
        return set_field(spec, path, _bounded(path, value))

    return operator


def _scale_memory(path: str, spread: float) -> Operator:
    """Returns an operator that multiplies a memory length by a log-normal factor.

    The memory length of an average with decay `beta` is `1 / (1 - beta)`.
    """

    def operator(spec, rng):
        gap = (1.0 - get_field(spec, path)) * float(np.exp(rng.normal(0.0, spread)))
        return set_field(spec, path, _bounded(path, 1.0 - gap))

    return operator


def _step_integer(path: str) -> Operator:
    """Returns an operator that adds 1 to or subtracts 1 from an integer, within its bounds."""

    def operator(spec, rng):
        field, value = FIELDS[path], get_field(spec, path)
        steps = [v for v in (value - 1, value + 1) if field.low <= v <= field.high]
        return set_field(spec, path, int(rng.choice(steps)))

    return operator


def _one_of(operators: list[Operator]) -> Operator:
    def operator(spec, rng):
        return operators[rng.integers(len(operators))](spec, rng)

    return operator


MOVES: dict[str, tuple[Callable[[str, float], Operator], float]] = {
    "scale": (_scale, 0.4),
    "shift": (_shift, 0.3),
    "memory": (_scale_memory, 0.5),
}
"""How the pole of an actuator moves, by `Actuator.mutation`: an operator and its spread."""


def _poles() -> list[Operator]:
    moves = [(name, *MOVES[row.mutation]) for name, row in ACTUATORS._asdict().items()]
    return [
        move(f"control.{pole}.{name}", spread)
        for pole in ("aggressive", "conservative")
        for name, move, spread in moves
    ]


OPERATORS: dict[str, Operator] = {
    "toggle_momentum_placement": _other_choice("momentum_placement"),
    "toggle_trust_ratio": _other_choice("trust_ratio"),
    "adjust_trust_ratio_clamp": _one_of(
        [_scale("trust_ratio_min", 0.7), _scale("trust_ratio_max", 0.7)]
    ),
    "toggle_clip_policy": _other_choice("clip"),
    "toggle_decay_mode": _other_choice("decay"),
    "scale_update_multiplier": _scale("update_multiplier", 0.3),
    "adjust_ns_steps": _step_integer("ns_steps"),
    "adjust_second_moment_beta": _scale_memory("second_moment_beta", 0.7),
    "toggle_stateful_control": _other_choice("control.enabled"),
    "adjust_gate_bias": _shift("control.bias", 0.4),
    "adjust_gate_weight": _one_of(
        [_shift(f"control.coefficients.{name}", 0.7) for name in Sensors._fields]
    ),
    "adjust_stateful_ema_beta": _scale_memory("control.ema_beta", 0.7),
    "adjust_stateful_range": _one_of(_poles()),
}


def changed_fields(parent: OptimizerSpec, child: OptimizerSpec) -> list[str]:
    """Returns the paths of the fields in which two specs differ.

    Args:
      parent: Spec of concrete numbers.
      child: Spec of concrete numbers.

    Returns:
      Keys of `FIELDS`, in their order.
    """
    return [path for path in FIELDS if get_field(parent, path) != get_field(child, path)]


def describe_change(parent: OptimizerSpec, child: OptimizerSpec) -> str:
    """Describes the difference between two specs.

    Args:
      parent: Spec of concrete numbers.
      child: Spec of concrete numbers.

    Returns:
      Changes such as 'decay cautious -> none', separated by semicolons; empty for equal specs.
    """
    return "; ".join(
        f"{path} {field_to_json(path, get_field(parent, path))} -> "
        f"{field_to_json(path, get_field(child, path))}"
        for path in changed_fields(parent, child)
    )


def mutate(
    parent: OptimizerSpec,
    rng: np.random.Generator,
    seen: Collection[OptimizerSpec],
    operators: dict[str, Operator] | None = None,
) -> Mutation:
    """Draws a child that differs from its parent in exactly one field that has an effect.

    Args:
      parent: Spec of concrete numbers.
      rng: Random number generator, which is advanced.
      seen: Canonical forms of earlier candidates, none of which is drawn again.
      operators: Operators by name; by default `OPERATORS`.

    Returns:
      The child, the name of its operator and a description of the change.

    Raises:
      ExhaustedError: If none of 300 draws is a new child.
    """
    operators = OPERATORS if operators is None else operators
    names = list(operators)
    own = canonical(parent)
    for _ in range(_MAX_DRAWS):
        name = names[rng.integers(len(names))]
        child = operators[name](parent, rng)
        form = canonical(child)
        if form != own and form not in seen:
            return Mutation(child, name, describe_change(parent, child))
    raise ExhaustedError(
        f"no new child after {_MAX_DRAWS} draws by {', '.join(names)}; "
        f"{len(seen)} candidates are known"
    )
