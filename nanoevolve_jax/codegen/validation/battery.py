"""Inputs that a function must survive: ordinary ones, extreme ones, every switch both ways."""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from nanoevolve_jax.policy.slots import (
    EXTRA_SENSORS,
    Control,
    Knobs,
    Poles,
    Shape,
    second_moment_shape,
)
from nanoevolve_jax.policy.spec import ACTUATORS, FIELDS, Actuators, Sensors

_FEWEST_LANES = 3


class Battery(NamedTuple):
    """Inputs by lane."""

    names: tuple[str, ...]  # what is special about each, for messages
    arguments: tuple[np.ndarray, ...]  # flat, each [lanes, ...]


def battery(slot: str, shape: Shape, most: int = 100) -> Battery:
    """The inputs of a slot; the same every time.

    Args:
      slot: one of `SLOTS`.
      shape: (inputs, outputs) of a matrix, or None.
      most: inputs of a matrix at most, but three at least.

    Returns:
      The most telling inputs first; for `direction` about 35.
    """
    makers = {"direction": _directions, "gate": _gates, "actuate": _actuates, "features": _sensors}
    cases = makers[slot](shape)
    if shape is not None:
        cases = itertools.islice(cases, max(_FEWEST_LANES, most))
    names, arguments = zip(*cases, strict=True)
    flat = zip(*map(jax.tree.leaves, arguments), strict=True)
    return Battery(names, tuple(np.stack([_typed(x) for x in column]) for column in flat))


def _typed(value: Any) -> np.ndarray:
    kinds = {bool: np.bool_, int: np.int32}
    return np.asarray(value, kinds.get(type(value), np.float32))


def _directions(shape: tuple[int, int]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    matrices, usual = _matrices(shape), _knobs()
    for name, arrays in matrices.items():
        yield f"{name} gradient", (*arrays, usual)
    bare = usual._replace(
        nesterov=False, orthogonalize=False, second_moment=False, momentum_placement=1
    )
    for name in ("normal", "zero", "huge"):
        yield f"{name} gradient, all switches turned", (*matrices[name], bare)
    for name, value in _turned_knobs(usual):
        yield f"{name} = {value}", (*matrices["normal"], usual._replace(**{name: value}))


def _matrices(shape: tuple[int, int]) -> dict[str, tuple[np.ndarray, ...]]:
    """Gradient, momentum, second moment and parameter, by what is special about the gradient."""
    rng = np.random.default_rng(0)
    inputs, outputs = shape
    normal, momentum, parameter = rng.normal(size=(3, inputs, outputs))
    second = rng.uniform(0.1, 2.0, size=second_moment_shape(shape))
    rank_one = np.outer(rng.normal(size=inputs), rng.normal(size=outputs))
    sparse = np.where(rng.uniform(size=shape) < 0.01, normal, 0.0)
    one = np.zeros(shape)
    one[0, 0] = 1.0
    zero = np.zeros(shape)
    return {
        "normal": (normal, 0.3 * momentum, second, parameter),
        "zero": (zero, zero, np.zeros_like(second), parameter),
        "huge": (1e8 * normal, 1e8 * momentum, 1e16 * second, parameter),
        "tiny": (1e-30 * normal, 1e-30 * momentum, np.zeros_like(second), parameter),
        "rank-one": (rank_one, rank_one, second, parameter),
        "sparse": (sparse, zero, second, zero),
        "single-entry": (one, zero, np.zeros_like(second), parameter),
        "momentum-equal": (normal, normal, second, parameter),
        "opposite": (normal, -normal, second, -parameter),
    }


def _knobs() -> Knobs:
    actuators = {name: row.default for name, row in ACTUATORS._asdict().items()}
    return Knobs(
        **actuators,
        momentum=FIELDS["momentum"].default,
        nesterov=True,
        momentum_placement=0,
        orthogonalize=True,
        ns_steps=5,
        second_moment=True,
    )


def _turned_knobs(usual: Knobs) -> Iterator[tuple[str, Any]]:
    """Every knob at its bounds, one at a time."""
    for name in ("nesterov", "orthogonalize", "second_moment"):
        yield name, False
    yield "momentum_placement", 1
    steps = FIELDS["ns_steps"]
    yield from (("ns_steps", n) for n in range(steps.low, steps.high) if n != usual.ns_steps)
    for name, row in (ACTUATORS._asdict() | {"momentum": FIELDS["momentum"]}).items():
        yield from ((name, bound) for bound in (row.low, row.high, 0.5 * (row.low + row.high)))


def _sensors(shape: Shape) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """All combinations of -1, 0 and 1."""
    del shape
    for values in itertools.product((0.0, 1.0, -1.0), repeat=len(Sensors._fields)):
        yield f"sensors {values}", (Sensors(*values),)


def _gates(shape: Shape) -> Iterator[tuple[str, tuple[Any, ...]]]:
    extras = itertools.cycle(
        ((0.0,) * EXTRA_SENSORS, (1.0,) * 4, (-1.0,) * 4, (1.0, -1.0, 0.5, 0.0))
    )
    controls = itertools.cycle(
        Control(sharpness, bias, Sensors(*[weight] * len(Sensors._fields)))
        for sharpness, bias, weight in itertools.product(
            (4.0, FIELDS["control.sharpness"].low, FIELDS["control.sharpness"].high),
            (-0.5, FIELDS["control.bias"].low, FIELDS["control.bias"].high),
            (1.0, -2.0, 0.0, 2.0),
        )
    )
    # Cycles of 4 and 36 controls against 729 sensors: each meets many of the others.
    for (name, (sensors,)), features, control in zip(
        _sensors(shape), extras, controls, strict=False
    ):
        yield name, (sensors, features, control)


def _actuates(shape: Shape) -> Iterator[tuple[str, tuple[Any, ...]]]:
    del shape
    poles = [
        Actuators(*(getattr(row, bound) for row in ACTUATORS))
        for bound in ("default", "low", "high")
    ]
    for gate in (0.0, 1.0, 0.5, 1e-6, 0.999):
        for low, high in itertools.product(poles, poles):
            yield f"gate = {gate}", (gate, Poles(low, high))
