"""Does an exported file do what the search trained? Step for step, from the same state.

Both optimizers start every step from our state, so that what is measured is the rounding of one
step and not its growth over fifty. Compared are the parameters after a step: the L2 of their
difference over the L2 of the parameters, for the worst matrix and step. The learning rate of every
step is such that the matrix that moves most moves by a twentieth of its norm. So `PARAMETERS` asks
that updates agree within 2e-5: a few times what Polar Express makes of float32's rounding, and a
fifth of what a coefficient does that is off by 1e-4. What an export will remember is compared too,
for a mistake there would show one step later than anybody looks.

The mask of cautious decay asks for the sign of update times parameter, so where the update is
within rounding of 0 it may flip. An entry is a flip if only one of the two decayed it and if, in
both, `abs(update * parameter)` is at most `ROUNDING * rms(update) * abs(parameter)`; flips are
counted and left out of the L2.

The slope of the loss is a difference of averages over a difference of averages, which at the first
steps of a run are nearly equal: there float32 leaves some 1e-5 of a gate that reads it open. A step
that would not pass is therefore compared once more with our gate held where the export has its own,
if the two are within `GATE`; such steps are counted too. Whatever else differs counts.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from nanoevolve_jax.exports.stepping import (
    Memory,
    Optimizer,
    Step,
    load_module,
    no_memory,
    optax_optimizer,
    own_optimizer,
    torch_optimizer,
)
from nanoevolve_jax.policy.certified import Code
from nanoevolve_jax.policy.spec import OptimizerSpec

STEPS = 50
PARAMETERS = 1e-6  # relative L2 of a matrix after a step
MEMORY = 5e-5  # the same of what is remembered; second moments square the directions' rounding
ROUNDING = 3e-5  # of an update's entry, in RMS of the update
GATE = 1e-4  # between the two gates
HELD = 0.2  # share of steps: more of them are no rounding
FLIPS = 1e-3  # share of entries: more of them are no rounding
Shape = tuple[int, int]  # (inputs, outputs)
SHAPES: tuple[Shape, ...] = ((8, 8), (12, 12), (8, 24), (8, 24), (24, 8))
_WEIGHT_DECAY = 0.1
_MOVE = 0.05  # of its norm, by which a step moves the matrix that moves most
_SPIKE = 20  # the step whose gradient is 30 times as large
_UNSENSED = 30  # the step whose loss is NaN


class Agreement(NamedTuple):
    """How far an export is from our optimizer, over all matrices and steps."""

    max_relative_l2: float  # of the parameters after a step
    memory: float  # the same of what is remembered
    flips: int  # of the cautious mask, by rounding
    held: int  # steps compared with our gate held at the other one, within rounding
    entries: int  # of all matrices in all steps
    steps: int

    @property
    def passes(self) -> bool:
        return bool(
            self.max_relative_l2 <= PARAMETERS
            and self.memory <= MEMORY
            and self.flips <= FLIPS * self.entries
            and self.held <= HELD * self.steps
        )

    def to_json(self) -> dict[str, Any]:
        """As it stands on an evidence card; null where it is not a number."""
        return {
            "max_relative_l2": self.max_relative_l2 if np.isfinite(self.max_relative_l2) else None,
            "flips": self.flips,
            "held": self.held,
            "passes": self.passes,
        }


Check = Callable[[OptimizerSpec, str, Code | None], Agreement]
"""Compares a policy, with its rewritten functions if any, with the text of an exported file."""


def compare(
    spec: OptimizerSpec,
    own: Optimizer,
    exported: Optimizer,
    steps: int,
    shapes: Sequence[Shape] = SHAPES,
) -> Agreement:
    """Runs two optimizers over random gradients; every step starts from the state of `own`."""
    rng = np.random.default_rng(0)
    params = [np.float32(rng.normal(size=s) / np.sqrt(max(s))) for s in shapes]
    memory = no_memory(spec, params)
    found = Agreement(0.0, 0.0, 0, 0, steps * sum(a * b for a, b in shapes), steps)
    for step in _steps(rng, spec.momentum, steps, shapes):
        step = step._replace(params=params, memory=memory)
        still, _ = own(step._replace(weight_decay=np.float32(0.0)))
        moved = max(map(_relative_l2, still, params))
        step = step._replace(learning_rate=np.float32(_MOVE / max(moved, 1e-6)))
        found = _with_step(found, own, exported, step)
        params, memory = own(step)
    return found


def _with_step(found: Agreement, own: Optimizer, exported: Optimizer, step: Step) -> Agreement:
    """What was found with one more step."""
    own_gate = own(step)[1]["gate"]
    gate = exported(step)[1].get("gate", own_gate)
    off, memory, flips = _compare_step(own, exported, step)
    held = off > PARAMETERS or memory > MEMORY
    held = bool(held and 0.0 < np.abs(gate - own_gate) <= GATE)
    if held:
        off, memory, flips = _compare_step(own, exported, step._replace(gate=np.float32(gate)))
    return found._replace(
        max_relative_l2=max(found.max_relative_l2, off),
        memory=max(found.memory, memory),
        flips=found.flips + flips,
        held=found.held + held,
    )


def _compare_step(own: Optimizer, exported: Optimizer, step: Step) -> tuple[float, float, int]:
    """Distance of parameters and of what is remembered, and flips, after one step."""
    undecayed = step._replace(weight_decay=np.float32(0.0))
    (after, following), (other, remembered) = own(step), exported(step)
    still, other_still = own(undecayed)[0], exported(undecayed)[0]
    limit = 0.5 * step.learning_rate * step.weight_decay
    worst, flips = 0.0, 0
    for i, p in enumerate(step.params):
        flipped = _flipped(p, limit, (after[i], still[i]), (other[i], other_still[i]))
        flips += int(flipped.sum())
        worst = max(worst, _relative_l2(other[i], after[i], ~flipped))
    return worst, _memory_distance(remembered, following), flips


@functools.lru_cache(maxsize=8)
def check_optax(
    spec: OptimizerSpec, source: str, code: Code | None = None, *, steps: int = STEPS
) -> Agreement:
    """Compares a file exported for optax with the policy it was made from.

    The file is run, and with it the sources of rewritten functions. A direction can be compared
    only on matrices for which it was certified: the smallest of each form is taken, twice.
    """
    exported = optax_optimizer(load_module(source), steps)
    return compare(spec, own_optimizer(spec, steps, code), exported, steps, shapes_for(code))


def shapes_for(code: Code | None) -> Sequence[Shape]:
    """Matrices for a comparison: square, wide and tall ones, as far as there are programs."""
    function = code and code.of("direction")
    if not function:
        return SHAPES
    known = [tuple(map(int, key.split("x"))) for key in function.certificate["programs"]]
    smallest = {}
    for shape in sorted(known, key=math.prod):
        smallest.setdefault(np.sign(shape[1] - shape[0]), shape)
    return sorted(2 * [*smallest.values()])


def check_torch(spec: OptimizerSpec, source: str, *, steps: int = STEPS) -> Agreement:
    """Compares a file exported for PyTorch with the policy it was made from.

    Raises:
      ImportError: if torch is not installed.
    """
    import torch

    exported = torch_optimizer(load_module(source), steps)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices are small: more threads only wait for each other
    try:
        return compare(spec, own_optimizer(spec, steps), exported, steps)
    finally:
        torch.set_num_threads(threads)


def _steps(
    rng: np.random.Generator, momentum: float, steps: int, shapes: Sequence[Shape]
) -> Iterator[Step]:
    """Yields steps with similar gradients and falling losses.

    One gradient is 30 times as large, and one loss is NaN. One output of the last matrix never has
    a gradient. Settings change at every step, as they do under a schedule.
    """
    grads = [np.zeros(shape) for shape in shapes]
    for count in range(steps):
        grads = [0.6 * g + 0.8 * rng.normal(size=g.shape) for g in grads]
        grads[-1][:, 0] = 0.0
        size = 0.01 * (1.0 + 0.5 * np.sin(count)) * (30.0 if count == _SPIKE else 1.0)
        left = 1.0 - 0.5 * count / steps
        loss = 4.0 * (count + 1) ** -0.15 * np.exp(0.03 * rng.normal())
        yield Step(
            params=[],
            grads=[np.float32(size * g) for g in grads],
            loss=np.float32(np.nan if count == _UNSENSED else loss),
            memory={},
            learning_rate=np.float32(1.0),
            momentum=np.float32(momentum * (1.0 - 0.1 * left)),
            weight_decay=np.float32(_WEIGHT_DECAY * left),
        )


def _flipped(
    p: np.ndarray,
    limit: float,
    own: tuple[np.ndarray, np.ndarray],
    found: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Entries that only one of two steps decayed, because the update's sign is rounding.

    Args:
      p: a matrix before the step.
      limit: of the share of `p` that decay takes, above which an entry counts as decayed.
      own: the matrix after our step, with weight decay and without.
      found: the same of the other one.
    """
    decayed = [np.abs(with_it - without) > limit * np.abs(p) for with_it, without in (own, found)]
    updates = [without - p for _, without in (own, found)]
    tiny = [np.abs(u * p) <= ROUNDING * np.sqrt(np.mean(u**2)) * np.abs(p) for u in updates]
    return (decayed[0] != decayed[1]) & tiny[0] & tiny[1]


def _relative_l2(found: Any, expected: Any, where: Any = True) -> float:
    """L2 of the difference over L2 of what is expected; infinite if it is not a number."""
    found, expected = np.float64(found), np.float64(expected)
    off = np.sqrt(np.sum((found - expected) ** 2, where=where))
    size = max(np.linalg.norm(expected), np.finfo(np.float32).tiny)
    return float(off / size) if np.isfinite(off) else float("inf")


def _memory_distance(found: Memory, expected: Memory) -> float:
    """Relative L2 of the worst matrix; of a scalar above 1 its share, below the difference."""
    worst = 0.0
    for name, value in found.items():
        if isinstance(value, list):
            pairs = zip(value, expected[name], strict=True)
            worst = max(worst, *(_relative_l2(a, b) for a, b in pairs))
        else:
            a, b = np.float64(value), np.float64(expected[name])
            off = np.max(np.abs(a - b) / np.maximum(1.0, np.abs(b)))
            worst = max(worst, float(off) if np.isfinite(off) else float("inf"))
    return worst
