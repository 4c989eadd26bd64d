"""Runs a program on prepared inputs to check that its results are finite and reproducible."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from nanoevolve_jax.codegen.validation.refusals import Refused
from nanoevolve_jax.policy.slots import EXTRA_SENSORS, Control, Poles, Shape, second_moment_shape
from nanoevolve_jax.policy.spec import ACTUATORS, FIELDS, Actuators, Knobs, Sensors

_FEWEST_LANES = 3
_Case = tuple[str, tuple[Any, ...]]  # name and arguments of an input
_Program = Callable[..., Sequence[Any]]


class Inputs(NamedTuple):
    """Inputs on which a function is run, one per lane."""

    names: tuple[str, ...]  # description of each input, for messages
    arguments: tuple[np.ndarray, ...]  # flattened arguments, each of shape [lanes, ...]


def inputs_of(slot: str, shape: Shape, most: int = 100) -> Inputs:
    """Returns ordinary and extreme inputs, with every switch turned on and off.

    The result is deterministic.

    Args:
      slot: Name of the slot, one of `SLOTS`.
      shape: Shape (inputs, outputs) of a matrix, or None for a slot that takes no matrix.
      most: Largest number of inputs if the slot takes a matrix. At least three inputs are returned,
        and the most informative ones come first.
    """
    if shape is not None:
        cases = itertools.islice(_directions(shape), max(_FEWEST_LANES, most))
    else:
        cases = {"gate": _gates, "actuate": _actuates, "features": _sensors}[slot]()
    names, arguments = zip(*cases, strict=True)
    flat = zip(*map(jax.tree.leaves, arguments), strict=True)
    return Inputs(names, tuple(np.stack([_array(x) for x in column]) for column in flat))


def _array(value: Any) -> np.ndarray:
    kinds: dict[type, Any] = {bool: np.bool_, int: np.int32}
    return np.asarray(value, kinds.get(type(value), np.float32))


def _directions(shape: tuple[int, int]) -> Iterator[_Case]:
    usual = _knobs()
    matrices = _matrices(shape)
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
    """Returns tuples (gradient, momentum, second moment, parameter) by the kind of gradient."""
    rng = np.random.default_rng(0)
    inputs, outputs = shape
    normal, momentum, parameter = rng.normal(size=(3, inputs, outputs))
    second = rng.uniform(0.1, 2.0, size=second_moment_shape(shape))
    rank_one = np.outer(rng.normal(size=inputs), rng.normal(size=outputs))
    sparse = np.where(rng.uniform(size=shape) < 0.01, normal, 0.0)
    single, zero, none = np.zeros(shape), np.zeros(shape), np.zeros_like(second)
    single[0, 0] = 1.0
    return {
        "normal": (normal, 0.3 * momentum, second, parameter),
        "zero": (zero, zero, none, parameter),
        "huge": (1e8 * normal, 1e8 * momentum, 1e16 * second, parameter),
        "tiny": (1e-30 * normal, 1e-30 * momentum, none, parameter),
        "rank-one": (rank_one, rank_one, second, parameter),
        "sparse": (sparse, zero, second, zero),
        "single-entry": (single, zero, none, parameter),
        "momentum-equal": (normal, normal, second, parameter),
        "opposite": (normal, -normal, second, -parameter),
    }


def _knobs() -> Knobs:
    return Knobs(
        **{name: row.default for name, row in ACTUATORS._asdict().items()},
        momentum=FIELDS["momentum"].default,
        nesterov=True,
        momentum_placement=0,
        orthogonalize=True,
        ns_steps=5,
        second_moment=True,
    )


def _turned_knobs(usual: Knobs) -> Iterator[tuple[str, Any]]:
    """Yields the name of each knob with each of its further values, such as its bounds."""
    for name in ("nesterov", "orthogonalize", "second_moment"):
        yield name, False
    yield "momentum_placement", 1
    steps = FIELDS["ns_steps"]
    yield from (("ns_steps", n) for n in range(steps.low, steps.high) if n != usual.ns_steps)
    for name, row in (ACTUATORS._asdict() | {"momentum": FIELDS["momentum"]}).items():
        yield from ((name, value) for value in (row.low, row.high, 0.5 * (row.low + row.high)))


def _sensors() -> Iterator[_Case]:
    """Yields all combinations of sensor values from -1, 0 and 1."""
    for values in itertools.product((0.0, 1.0, -1.0), repeat=len(Sensors._fields)):
        yield f"sensors {values}", (Sensors(*values),)


def _gates() -> Iterator[_Case]:
    extras = ((0.0,) * EXTRA_SENSORS, (1.0,) * 4, (-1.0,) * 4, (1.0, -1.0, 0.5, 0.0))
    sharpness, bias = FIELDS["control.sharpness"], FIELDS["control.bias"]
    controls = itertools.product(
        (4.0, sharpness.low, sharpness.high), (-0.5, bias.low, bias.high), (1.0, -2.0, 0.0, 2.0)
    )
    # The cycles of 4 and 36 values are combined with 729 sensor values, so that each value occurs
    # with many others.
    cycles = itertools.cycle(extras), itertools.cycle(controls)
    for (name, (sensors,)), features, (sharp, middle, weight) in zip(
        _sensors(), *cycles, strict=False
    ):
        coefficients = Sensors(*[weight] * len(Sensors._fields))
        yield name, (sensors, features, Control(sharp, middle, coefficients))


def _actuates() -> Iterator[_Case]:
    poles = [
        Actuators(*(getattr(row, bound) for row in ACTUATORS))
        for bound in ("default", "low", "high")
    ]
    for gate in (0.0, 1.0, 0.5, 1e-6, 0.999):
        for low, high in itertools.product(poles, poles):
            yield f"gate = {gate}", (gate, Poles(low, high))


def require_sound(
    program: _Program, baseline: _Program, inputs: Inputs, names: Sequence[str]
) -> None:
    """Checks that the results of a program are finite, reproducible and independent per lane.

    A result must be finite only for inputs for which all results of the built-in function are.

    Args:
      program: Function from flat arguments [lanes, ...] to flat results [lanes, ...].
      baseline: Built-in function in the same form.
      inputs: Inputs of the slot.
      names: Names of the results.

    Raises:
      Refused: If a check fails, with reason 'non_finite', 'nondeterministic' or 'effect'.
    """
    results = _arrays(program(*inputs.arguments))
    lost = ~_finite(results) & _finite(_arrays(baseline(*inputs.arguments))).all(axis=0)
    if lost.any():
        result, lane = np.argwhere(lost)[0]
        message = f"result {names[result]!r} is not finite for {inputs.names[lane]}"
        raise Refused("non_finite", message)
    for name, first, second in zip(names, results, program(*inputs.arguments), strict=True):
        if first.tobytes() != np.asarray(second).tobytes():
            raise Refused("nondeterministic", f"result {name!r} differs between two calls")
    # NaN in every second lane must not change the results of the other lanes.
    spoiled = [x.copy() for x in inputs.arguments]
    for array in spoiled:
        if array.dtype.kind == "f":
            array[1::2] = np.nan
    for name, alone, beside in zip(names, results, program(*spoiled), strict=True):
        if alone[::2].tobytes() != np.asarray(beside)[::2].tobytes():
            raise Refused("effect", f"result {name!r} of one matrix depends on another matrix")


def _arrays(results: Sequence[Any]) -> list[np.ndarray]:
    return [np.asarray(x) for x in results]


def _finite(results: list[np.ndarray]) -> np.ndarray:
    """Returns whether all entries of each result are finite, as booleans [results, lanes]."""
    return np.stack([np.isfinite(x).reshape(len(x), -1).all(axis=1) for x in results])
