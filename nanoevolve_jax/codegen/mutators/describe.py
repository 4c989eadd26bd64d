"""A slot's contract in words: what its function is given, what it gives back, what is done outside.

Names come from `policy.slots`; what a name means, in which unit and range, is written here.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from nanoevolve_jax.policy.slots import EXTRA_SENSORS, SLOTS
from nanoevolve_jax.policy.spec import ACTUATORS, FIELDS, Actuators


class Described(NamedTuple):
    """One argument or result."""

    name: str
    form: str  # its dtype and shape
    meaning: str


_MATRIX = "float32 [inputs, outputs]"
_FACTORED = "float32 [1, outputs] where outputs >= inputs, else [inputs, 1]"
_SCALAR = "float32 scalar"


def _between(name: str) -> str:
    low, high = FIELDS[name].low, FIELDS[name].high
    return f"from {low:g} to {high:g}"


_ACTUATORS = {
    "update_multiplier": "factor on the update, applied outside, after the trust ratio",
    "trust_ratio_mix": "share of the layerwise trust ratio, applied outside",
    "clip_threshold": "limit of the update's RMS or of the gradient's norm, applied outside",
    "second_moment_beta": "decay of the second moment",
    "orthogonal_mix": "0: the normalised momentum, 1: its orthogonal factor",
}
_SWITCHES = {
    "momentum": (_SCALAR, f"its coefficient at this step, {_between('momentum')}, on a schedule"),
    "nesterov": ("bool scalar", "look ahead along the momentum"),
    "momentum_placement": ("int32 scalar", "0: momentum before the direction, 1: after it"),
    "orthogonalize": ("bool scalar", "orthogonalise, or only normalise"),
    "ns_steps": ("int32 scalar", f"iterations of Polar Express, {_between('ns_steps')}"),
    "second_moment": ("bool scalar", "normalise by the factored second moment (NorMuon)"),
}
_SENSORS = {
    "loss_ema": "how far the mean loss has fallen from the first one, in [-1, 1]",
    "loss_improvement_ema": "how steeply the loss falls in log-log coordinates, in [-1, 1]",
    "grad_norm_ema": "log of the gradient norm, recent against older, in [-1, 1]",
    "update_ratio_ema": "log of update norm over parameter norm, recent against older, in [-1, 1]",
    "grad_alignment_ema": "cosine of successive gradients, averaged, in [-1, 1]",
    "step_fraction": "share of the run that has passed, in [0, 1]",
}


def _actuator(name: str) -> str:
    row = getattr(ACTUATORS, name)
    return f"{_ACTUATORS[name]}; from {row.low:g} to {row.high:g}"


def _actuators(prefix: str) -> Iterator[Described]:
    for name in Actuators._fields:
        yield Described(f"{prefix}{name}", _SCALAR, _actuator(name))


def _sensors(prefix: str = "sensors.") -> Iterator[Described]:
    for name, meaning in _SENSORS.items():
        yield Described(f"{prefix}{name}", _SCALAR, meaning)


def _direction() -> Iterator[Described]:
    yield Described("gradient", _MATRIX, "of the loss by this matrix, after clipping by its norm")
    yield Described(
        "momentum", _MATRIX, "what this function gave for it a step ago; zeros at first"
    )
    yield Described("second_moment", _FACTORED, "likewise")
    yield Described("parameter", _MATRIX, "the matrix itself")
    yield from _actuators("knobs.")
    for name, (form, meaning) in _SWITCHES.items():
        yield Described(f"knobs.{name}", form, meaning)


def _gate() -> Iterator[Described]:
    yield from _sensors()
    kind = f"tuple of {EXTRA_SENSORS} float32 scalars"
    yield Described(
        "features", kind, "in [-1, 1]: what the slot `features` gives; zeros without it"
    )
    yield Described("control.sharpness", _SCALAR, f"slope, {_between('control.sharpness')}")
    yield Described("control.bias", _SCALAR, f"offset, {_between('control.bias')}")
    for name, meaning in _SENSORS.items():
        reach = _between(f"control.coefficients.{name}")
        yield Described(f"control.coefficients.{name}", _SCALAR, f"weight {reach} of: {meaning}")


def _actuate() -> Iterator[Described]:
    yield Described("gate", _SCALAR, "in [0, 1]; 0: aggressive, 1: conservative")
    for pole in ("aggressive", "conservative"):
        yield from _actuators(f"poles.{pole}.")


_ARGUMENTS = {
    "direction": _direction,
    "gate": _gate,
    "actuate": _actuate,
    "features": _sensors,
}
_RESULTS = {
    "direction": (
        Described("update", _MATRIX, "to be subtracted; norm near sqrt(min(inputs, outputs))"),
        Described("momentum", _MATRIX, "kept for the next step"),
        Described("second_moment", _FACTORED, "kept for the next step"),
    ),
    "gate": (Described("gate", _SCALAR, "in [0, 1]; what is outside is clipped"),),
    "actuate": tuple(_actuators("")),
    "features": tuple(
        Described(f"feature_{i}", _SCALAR, "in [-1, 1]; what is outside is clipped")
        for i in range(EXTRA_SENSORS)
    ),
}
_OUTSIDE = {
    "direction": (
        "Before: clipping of the gradient. After, in this order: trust ratio, update multiplier, "
        "limit of the update's RMS, weight decay, the factor sqrt(max(1, outputs / inputs)), the "
        "learning rate on its schedule. Embeddings, head and scalars have AdamW and never come "
        "here. The function sees one matrix of one model; stacks and lanes are mapped over outside."
    ),
    "gate": "The sensors are averaged and squashed before; the slot `actuate` comes after.",
    "actuate": "The actuators are clipped to their ranges; then the policy's own update multiplier "
    "multiplies the one given here.",
    "features": "The features are added to the gate's drive, each with weight 1.",
}
_SCOPES = {
    "matrix": "Change the mathematics of the matrix update: momentum, orthogonalisation, scaling, "
    "normalisation.",
    "gating": "Change how the state of training steers the optimizer.",
    "routing": "Change which matrices get which treatment: branch in Python on the shape of "
    "`gradient`, which is known while the function is traced. All shapes go through one function.",
}


def arguments_of(slot: str) -> tuple[Described, ...]:
    """What a slot's function is given, leaf by leaf."""
    return tuple(_ARGUMENTS[slot]())


def results_of(slot: str) -> tuple[Described, ...]:
    """What it gives back, in order."""
    return _RESULTS[slot]


def outside_of(slot: str) -> str:
    """What is done around it, out of its reach."""
    return _OUTSIDE[slot]


def aim_of(scope: str) -> str:
    """What a campaign of a scope is about."""
    return _SCOPES[scope]


def signature_of(slot: str) -> str:
    """The head of its function."""
    return f"def {slot}({', '.join(SLOTS[slot].parameters)}):"


def leaves_of(arguments: Any, names: tuple[str, ...]) -> Iterator[str]:
    """Dotted names of the leaves of a slot's arguments, as `arguments_of` has them."""
    for name, argument in zip(names, arguments, strict=True):
        fields = getattr(argument, "_fields", None)
        if fields is None:
            yield name
        else:
            yield from leaves_of(argument, tuple(f"{name}.{field}" for field in fields))
