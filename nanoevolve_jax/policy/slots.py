"""Slots: the four functions of a policy that may be rewritten as code, and their contracts.

A policy consists of these functions and the numbers of its spec. Everything around them is fixed.
A contract describes the arguments and results for a single matrix of a single candidate. The caller
maps a function over stacks of matrices and lanes of candidates, so a rewritten function has access
to neither.

Contracts can be read without importing JAX. `certified.py` runs rewritten functions.
"""

import ast
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nanoevolve_jax.policy.spec import (
    ACTUATORS,
    FIELDS,
    SENSORS,
    Actuators,
    Knobs,
    OptimizerSpec,
    Sensors,
)

EXTRA_SENSORS = 4
"""Number of extra sensors that `features` returns."""

Shape = tuple[int, int] | None  # (inputs, outputs) of a matrix
SCALAR: Shape = None
"""The shape of a slot that takes no matrix."""

_BUILT_IN = Path(__file__).parent / "built_in"
_LAYOUTS = {
    "scalar": "scalar",
    "matrix": "[inputs, outputs]",
    "factored": "[1, outputs] where outputs >= inputs, else [inputs, 1]",
}


class Control(NamedTuple):
    """Parameters of the spec that `gate` depends on; scalars."""

    sharpness: Any
    bias: Any
    coefficients: Sensors


class Poles(NamedTuple):
    """Actuators at a gate of 0 and at a gate of 1; scalars."""

    aggressive: Actuators
    conservative: Actuators


def second_moment_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """Returns the shape of a matrix's factored second moment, which keeps the longer side.

    Args:
      shape: Shape of the matrix, (inputs, outputs).
    """
    inputs, outputs = shape
    return (1, outputs) if outputs >= inputs else (inputs, 1)


@dataclass(frozen=True)
class Leaf:
    """One array among the arguments or results of a slot."""

    meaning: str
    layout: str = "scalar"  # a key of _LAYOUTS
    dtype: str = "float32"
    low: float | None = None  # lower bound; results are clipped to both bounds
    high: float | None = None  # upper bound

    @property
    def form(self) -> str:
        """Description of dtype and shape, such as 'float32 [inputs, outputs]'."""
        return f"{self.dtype} {_LAYOUTS[self.layout]}"

    def abstract(self, shape: Shape) -> Any:
        """Returns the `jax.ShapeDtypeStruct` of this array for a matrix of a given shape."""
        import jax  # here, so that reading a contract does not import JAX

        if self.layout == "scalar":
            return jax.ShapeDtypeStruct((), self.dtype)
        assert shape is not None
        kept = shape if self.layout == "matrix" else second_moment_shape(shape)
        return jax.ShapeDtypeStruct(kept, self.dtype)


@dataclass(frozen=True)
class Slot:
    """The contract of one function."""

    name: str
    scope: str
    inputs: dict[str, Any]  # tree of `Leaf`s by the name of the parameter, in order
    outputs: Any  # tree of `Leaf`s
    result_names: tuple[str, ...]
    meaning: str  # continuation of the sentence "The function turns ..."
    outside: str  # description of the computation before and after the function

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters, in order."""
        return tuple(self.inputs)

    @property
    def takes_matrix(self) -> bool:
        """Returns whether the function is compiled separately for each matrix shape."""
        return any(leaf.layout != "scalar" for _, leaf in self.named_arguments())

    def arguments(self, shape: Shape) -> tuple[Any, ...]:
        """Returns the abstract arguments for a matrix shape."""
        return tuple(_map(lambda leaf: leaf.abstract(shape), x) for x in self.inputs.values())

    def results(self, shape: Shape) -> tuple[Any, ...]:
        """Returns the abstract results for a matrix shape as a flat tuple."""
        return tuple(leaf.abstract(shape) for _, leaf in self.named_results())

    def named_arguments(self) -> list[tuple[str, Leaf]]:
        """Returns pairs of a dotted name, such as `control.bias`, and an argument."""
        return [pair for name, tree in self.inputs.items() for pair in _named(name, tree)]

    def named_results(self) -> list[tuple[str, Leaf]]:
        """Returns pairs of a name and a result."""
        leaves = [leaf for _, leaf in _named("", self.outputs)]
        return list(zip(self.result_names, leaves, strict=True))

    def pack(self, results: Iterable[Any]) -> Any:
        """Arranges flat results in the structure of `outputs`.

        Args:
          results: Arrays, in the order of `results`.

        Returns:
          Tree of arrays, as the built-in function returns it.
        """
        remaining = iter(results)
        return _map(lambda leaf: next(remaining), self.outputs)


def _map(function: Callable[[Leaf], Any], tree: Any) -> Any:
    if isinstance(tree, Leaf):
        return function(tree)
    children = [_map(function, child) for child in tree]
    return type(tree)(*children) if hasattr(tree, "_fields") else tuple(children)


def _named(name: str, tree: Any) -> Iterator[tuple[str, Leaf]]:
    if isinstance(tree, Leaf):
        yield name, tree
        return
    names = getattr(tree, "_fields", range(len(tree)))
    for child_name, child in zip(names, tree, strict=True):
        yield from _named(f"{name}.{child_name}", child)


def _number(path: str, meaning: str, dtype: str = "float32") -> Leaf:
    field = FIELDS[path]
    return Leaf(meaning, dtype=dtype, low=field.low, high=field.high)


_SENSORS = Sensors(
    *(Leaf(row.meaning, low=0.0 if row.normaliser is None else -1.0, high=1.0) for row in SENSORS)
)
_ACTUATORS = Actuators(*(Leaf(row.meaning, low=row.low, high=row.high) for row in ACTUATORS))
_FEATURE = Leaf("extra sensor", low=-1.0, high=1.0)
_GATE = Leaf("0 is aggressive, 1 is conservative", low=0.0, high=1.0)
_SWITCH = functools.partial(Leaf, dtype="bool")
_KNOBS = Knobs(
    **_ACTUATORS._asdict(),
    momentum=_number("momentum", "momentum coefficient at this step, on its schedule"),
    nesterov=_SWITCH("whether to look ahead along the momentum"),
    momentum_placement=_number(
        "momentum_placement", "0: momentum before the direction, 1: after it", "int32"
    ),
    orthogonalize=_SWITCH("whether to orthogonalize instead of only normalising"),
    ns_steps=_number("ns_steps", "iterations of Polar Express", "int32"),
    second_moment=_SWITCH("whether to normalise by the factored second moment (NorMuon)"),
)
_MOMENTUM = "momentum that this function returned one step ago; zeros before the first step"
_SECOND_MOMENT = "second moment that it returned one step ago; zeros before the first step"

SLOTS: dict[str, Slot] = {
    slot.name: slot
    for slot in (
        Slot(
            "direction",
            "matrix mathematics",
            {
                "gradient": Leaf("gradient of the loss, after clipping by its norm", "matrix"),
                "momentum": Leaf(_MOMENTUM, "matrix"),
                "second_moment": Leaf(_SECOND_MOMENT, "factored"),
                "parameter": Leaf("the matrix that is trained", "matrix"),
                "knobs": _KNOBS,
            },
            (
                Leaf("subtracted; its norm is near sqrt(min(inputs, outputs))", "matrix"),
                Leaf("momentum for the next step", "matrix"),
                Leaf("second moment for the next step", "factored"),
            ),
            ("update", "momentum", "second_moment"),
            "the gradient of one matrix into its update, its new momentum and its new second "
            "moment",
            "The gradient is clipped before. After the function come, in this order: trust ratio, "
            "update multiplier, limit of the update's RMS, weight decay, the factor "
            "sqrt(max(1, outputs / inputs)) and the learning rate on its schedule. Embeddings, "
            "head and scalars are trained by AdamW and never reach this function. It sees one "
            "matrix of one model.",
        ),
        Slot(
            "gate",
            "gating",
            {
                "sensors": _SENSORS,
                "features": (_FEATURE,) * EXTRA_SENSORS,
                "control": Control(
                    _number("control.sharpness", "slope of the gate"),
                    _number("control.bias", "offset of the gate"),
                    Sensors(
                        *(
                            _number(f"control.coefficients.{name}", f"weight of: {row.meaning}")
                            for name, row in SENSORS._asdict().items()
                        )
                    ),
                ),
            },
            _GATE,
            ("gate",),
            "the sensors into a gate in [0, 1]; 0 is aggressive, 1 is conservative",
            "The sensors are averaged and squashed before. `features` are the results of the slot "
            "of that name, or zeros where it is not rewritten. The slot `actuate` comes after.",
        ),
        Slot(
            "actuate",
            "gating",
            {"gate": _GATE, "poles": Poles(_ACTUATORS, _ACTUATORS)},
            _ACTUATORS,
            Actuators._fields,
            "the gate into the values of the actuators, in their order",
            "The actuators are clipped to their ranges. Then the policy's own update multiplier "
            "multiplies the one that is returned.",
        ),
        Slot(
            "features",
            "gating",
            {"sensors": _SENSORS},
            (_FEATURE,) * EXTRA_SENSORS,
            tuple(f"feature_{i}" for i in range(EXTRA_SENSORS)),
            f"the sensors into {EXTRA_SENSORS} extra sensors in [-1, 1], which the gate adds up",
            "The gate adds each extra sensor to its weighted sum, with weight 1.",
        ),
    )
}

SCOPES = {
    "matrix": ("direction",),
    "gating": ("gate", "actuate", "features"),
    # `direction` can treat matrices differently, because their shapes are known during tracing.
    "routing": ("direction",),
}
"""Slots by the purpose of a campaign."""


def shape_key(shape: Shape) -> str:
    """Returns the name of a shape, such as '64x256' or 'scalar'."""
    return "scalar" if shape is None else f"{shape[0]}x{shape[1]}"


def shapes_of(slot: str, matrices: Any) -> tuple[Shape, ...]:
    """Returns the shapes for which the function of a slot is compiled.

    Args:
      slot: Name of the slot, a key of `SLOTS`.
      matrices: Shape (inputs, outputs) of every matrix of a model.

    Returns:
      Distinct shapes in ascending order, or only `SCALAR` for a slot that takes no matrix.
    """
    if not SLOTS[slot].takes_matrix:
        return (SCALAR,)
    return tuple(sorted({(int(m), int(n)) for m, n in matrices}))


def knobs_of(spec: OptimizerSpec, actuators: Actuators, momentum: Any) -> Knobs:
    """Returns the argument `knobs` of `direction`.

    Args:
      spec: Policy of numbers or traced scalars.
      actuators: Actuators at this step; scalars.
      momentum: Momentum coefficient at this step; scalar.
    """
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
    """Returns the argument `control` of `gate`."""
    control = spec.control
    return Control(control.sharpness, control.bias, control.coefficients)


def poles_of(spec: OptimizerSpec) -> Poles:
    """Returns the argument `poles` of `actuate`."""
    return Poles(spec.control.aggressive, spec.control.conservative)


def is_read(slot: str, spec: OptimizerSpec) -> bool:
    """Returns whether a policy calls the function of a slot.

    Without a gate, a policy calls only `direction`.

    Args:
      slot: Name of the slot, a key of `SLOTS`.
      spec: Policy of concrete numbers.
    """
    return slot == "direction" or bool(spec.control.enabled)


class Slots(NamedTuple):
    """Functions that replace the built-in ones. None keeps the built-in function.

    Attributes:
      direction: `direction(gradient, momentum, second_moment, parameter, knobs)` for arrays of
        shape [..., inputs, outputs] returns (update, momentum, second_moment).
      gate: `gate(sensors, features, control)` returns a scalar in [0, 1].
      actuate: `actuate(gate, poles)` returns `Actuators` within their bounds.
      features: `features(sensors)` returns a tuple of `EXTRA_SENSORS` scalars in [-1, 1].
    """

    direction: Callable[..., Any] | None = None
    gate: Callable[..., Any] | None = None
    actuate: Callable[..., Any] | None = None
    features: Callable[..., Any] | None = None


BUILT_IN = Slots()


def _weighted_sum() -> str:
    return " + ".join(f"weights.{name} * sensors.{name}" for name in Sensors._fields)


def _blends() -> str:
    return ", ".join(f"blend(gate, low.{name}, high.{name})" for name in Actuators._fields)


@functools.cache
def built_in_source(slot: str) -> str:
    """Returns the source of a slot's built-in function, formatted by `ast.unparse`."""
    text = (_BUILT_IN / f"{slot}.py").read_text(encoding="utf-8")
    text = text.replace("WEIGHTED_SUM", _weighted_sum()).replace("BLENDS", _blends())
    return ast.unparse(ast.parse(text)) + "\n"
