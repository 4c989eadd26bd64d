"""Compares an exported file with the library's optimizer, step by step.

Both optimizers start every step from the library's state, so the comparison measures the rounding
errors of single steps and not their growth over fifty steps.

The distance of the parameters after a step is the L2 norm of their difference divided by the L2
norm of the parameters. The largest distance over all matrices and steps decides. The learning rate
of each step is chosen so that the matrix that changes most changes by a twentieth of its norm. The
limit `PARAMETERS` therefore requires updates to agree within 2e-5. This is a few times the rounding
error of Polar Express in float32, and a fifth of the effect of an error of 1e-4 in a coefficient.
The states after a step are compared too, because an error in them would affect only later steps.

Two effects of rounding are permitted and counted:

*   Cautious decay depends on the sign of update times parameter, which rounding can flip if the
    update is close to 0. An entry counts as flipped if only one of the optimizers decayed it and,
    in both, `abs(update * parameter)` is at most `ROUNDING * rms(update) * abs(parameter)`. Flipped
    entries are excluded from the L2 norm.
*   The slope of the loss is a quotient of two differences of averages. These averages are nearly
    equal during the first steps of a run, so a gate that depends on the slope is accurate only to
    about 1e-5 in float32. If the gates differ by at most `GATE`, a step that fails is compared
    again after setting the library's gate to the exported one.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from nanoevolve_jax.exports.source import source_of
from nanoevolve_jax.exports.stepping import (
    Optimizer,
    State,
    Step,
    initial_state,
    library_optimizer,
    load_module,
    optax_optimizer,
    torch_optimizer,
)
from nanoevolve_jax.policy.certified import CertificateError, Code
from nanoevolve_jax.policy.spec import OptimizerSpec

STEPS = 50
PARAMETERS = 1e-6  # limit of the relative L2 distance of a matrix after a step
STATES = 5e-5  # limit for states; it is larger because second moments square rounding errors
ROUNDING = 3e-5  # rounding error of an entry of the update, relative to the RMS of the update
GATE = 1e-4  # largest difference of two gates that rounding can explain
HELD = 0.2  # largest share of steps that need the exported gate
FLIPS = 1e-3  # largest share of flipped entries
Shape = tuple[int, int]  # (inputs, outputs)
SHAPES: tuple[Shape, ...] = ((8, 8), (12, 12), (8, 24), (8, 24), (24, 8))
_WEIGHT_DECAY = 0.1
_MOVE = 0.05  # relative change of the matrix that changes most in a step
_SPIKE = 20  # step whose gradient is 30 times as large
_UNSENSED = 30  # step whose loss is NaN


class Agreement(NamedTuple):
    """Distance of an export from the library's optimizer, over all matrices and steps."""

    max_relative_l2: float  # largest relative L2 distance of a matrix after a step
    state: float  # largest relative L2 distance of a state after a step
    flips: int  # number of entries of the cautious mask that rounding flipped
    held: int  # number of steps in which the library used the exported gate
    entries: int  # number of entries of all matrices in all steps
    steps: int  # number of steps

    @property
    def passes(self) -> bool:
        """Returns whether every distance and count is within its limit."""
        return bool(
            self.max_relative_l2 <= PARAMETERS
            and self.state <= STATES
            and self.flips <= FLIPS * self.entries
            and self.held <= HELD * self.steps
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the entry `export` of an evidence card; a distance that is not finite is null."""
        return {
            "max_relative_l2": self.max_relative_l2 if np.isfinite(self.max_relative_l2) else None,
            "flips": self.flips,
            "held": self.held,
            "passes": self.passes,
        }


Check = Callable[[OptimizerSpec, str, Code | None], Agreement]
"""Compares a policy and its rewritten functions, if any, with the text of an exported file."""


def export_result(
    name: str, spec: OptimizerSpec, code: Code | None, check: Check, log: Callable[[str], None]
) -> dict[str, Any]:
    """Compares a policy with its file for optax.

    A file that cannot be compared, for example because it does not terminate, is reported as
    different, so that rewritten code cannot prevent a card from being written.

    Args:
      name: Id of the policy.
      spec: Policy of concrete numbers.
      code: Rewritten functions of the policy, or None.
      check: Function that compares a policy with the text of a file.
      log: Callback that takes one line for the user.

    Returns:
      The entry `export` of an evidence card, see `Agreement.to_json`.
    """
    source = source_of(spec, "optax", name, code=code)
    try:
        agreement = check(spec, source, code)
    except CertificateError as error:
        log(f"export: {error}")
        agreement = Agreement(math.inf, math.inf, 0, 0, 0, 0)
    return agreement.to_json()


def compare(
    spec: OptimizerSpec,
    own: Optimizer,
    exported: Optimizer,
    steps: int,
    shapes: Sequence[Shape] = SHAPES,
) -> Agreement:
    """Compares two optimizers on random gradients.

    Args:
      spec: Policy of concrete numbers.
      own: Optimizer of the library, from whose state every step starts.
      exported: Optimizer of the exported file.
      steps: Number of steps to compare.
      shapes: Shapes (inputs, outputs) of the matrices.

    Returns:
      The agreement of both optimizers.
    """
    rng = np.random.default_rng(0)
    params = [np.float32(rng.normal(size=s) / np.sqrt(max(s))) for s in shapes]
    state = initial_state(spec, params)
    agreement = Agreement(0.0, 0.0, 0, 0, steps * sum(a * b for a, b in shapes), steps)
    for step in _steps(rng, spec.momentum, steps, shapes):
        step = step._replace(params=params, state=state)
        undecayed, _ = own(step._replace(weight_decay=np.float32(0.0)))
        moved = max(map(_relative_l2, undecayed, params))
        step = step._replace(learning_rate=np.float32(_MOVE / max(moved, 1e-6)))
        agreement = _with_step(agreement, own, exported, step)
        params, state = own(step)
    return agreement


def _with_step(agreement: Agreement, own: Optimizer, exported: Optimizer, step: Step) -> Agreement:
    """Returns the agreement after comparing another step."""
    own_gate = own(step)[1]["gate"]
    gate = exported(step)[1].get("gate", own_gate)
    distance, state, flips = _compare_step(own, exported, step)
    fails = distance > PARAMETERS or state > STATES
    held = bool(fails and 0.0 < np.abs(gate - own_gate) <= GATE)
    if held:
        step = step._replace(gate=np.float32(gate))
        distance, state, flips = _compare_step(own, exported, step)
    return agreement._replace(
        max_relative_l2=max(agreement.max_relative_l2, distance),
        state=max(agreement.state, state),
        flips=agreement.flips + flips,
        held=agreement.held + held,
    )


def _compare_step(own: Optimizer, exported: Optimizer, step: Step) -> tuple[float, float, int]:
    """Returns the distances of parameters and states after a step, and the number of flips."""
    undecayed = step._replace(weight_decay=np.float32(0.0))
    (own_params, own_state), (params, state) = own(step), exported(step)
    own_undecayed, params_undecayed = own(undecayed)[0], exported(undecayed)[0]
    limit = 0.5 * step.learning_rate * step.weight_decay
    worst, flips = 0.0, 0
    for i, p in enumerate(step.params):
        pairs = (own_params[i], own_undecayed[i]), (params[i], params_undecayed[i])
        flipped = _flipped(p, limit, *pairs)
        flips += int(flipped.sum())
        worst = max(worst, _relative_l2(params[i], own_params[i], ~flipped))
    return worst, _state_distance(state, own_state), flips


@functools.lru_cache(maxsize=8)
def check_optax(
    spec: OptimizerSpec, source: str, code: Code | None = None, *, steps: int = STEPS
) -> Agreement:
    """Compares a file exported for optax with its policy.

    This executes the file, including the sources of rewritten functions.

    Args:
      spec: Policy of concrete numbers.
      source: Text of the exported file.
      code: Rewritten functions of the policy, or None.
      steps: Number of steps to compare.

    Returns:
      The agreement of the file with the policy.
    """
    exported = optax_optimizer(load_module(source), steps)
    return compare(spec, library_optimizer(spec, steps, code), exported, steps, shapes_for(code))


def shapes_for(code: Code | None) -> Sequence[Shape]:
    """Returns the shapes of the matrices of a comparison.

    Square, wide and tall matrices are included. A rewritten direction has programs only for the
    shapes for which it was certified, so the smallest certified shape of each form is used twice.

    Args:
      code: Rewritten functions of the policy, or None.

    Returns:
      Shapes (inputs, outputs).
    """
    function = code and code.of("direction")
    if not function:
        return SHAPES
    certified = [tuple(map(int, key.split("x"))) for key in function.certificate["programs"]]
    smallest: dict[Any, Any] = {}
    for shape in sorted(certified, key=math.prod):
        smallest.setdefault(np.sign(shape[1] - shape[0]), shape)
    return sorted(2 * [*smallest.values()])


def check_torch(spec: OptimizerSpec, source: str, *, steps: int = STEPS) -> Agreement:
    """Compares a file exported for PyTorch with its policy.

    Args:
      spec: Policy of concrete numbers.
      source: Text of the exported file.
      steps: Number of steps to compare.

    Returns:
      The agreement of the file with the policy.

    Raises:
      ImportError: If torch is not installed.
    """
    import torch

    exported = torch_optimizer(load_module(source), steps)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the matrices are too small for several threads
    try:
        return compare(spec, library_optimizer(spec, steps), exported, steps)
    finally:
        torch.set_num_threads(threads)


def _steps(
    rng: np.random.Generator, momentum: float, steps: int, shapes: Sequence[Shape]
) -> Iterator[Step]:
    """Yields steps with correlated gradients and falling losses.

    The gradients of one step are 30 times as large, and the loss of one step is NaN. The gradient
    of the first output of the last matrix is always 0. Momentum and weight decay change at every
    step, as under a schedule.
    """
    grads = [np.zeros(shape) for shape in shapes]
    for count in range(steps):
        grads = [0.6 * g + 0.8 * rng.normal(size=g.shape) for g in grads]
        grads[-1][:, 0] = 0.0
        size = 0.01 * (1.0 + 0.5 * np.sin(count)) * (30.0 if count == _SPIKE else 1.0)
        remaining = 1.0 - 0.5 * count / steps
        loss = 4.0 * (count + 1) ** -0.15 * np.exp(0.03 * rng.normal())
        yield Step(
            params=[],
            grads=[np.float32(size * g) for g in grads],
            loss=np.float32(np.nan if count == _UNSENSED else loss),
            state={},
            learning_rate=np.float32(1.0),
            momentum=np.float32(momentum * (1.0 - 0.1 * remaining)),
            weight_decay=np.float32(_WEIGHT_DECAY * remaining),
        )


def _flipped(
    p: np.ndarray,
    limit: float,
    own: tuple[np.ndarray, np.ndarray],
    exported: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Returns a mask of the entries that only one optimizer decayed, because of rounding.

    Args:
      p: Matrix before the step.
      limit: Smallest change that counts as decay, relative to `p`.
      own: Matrix after the library's step, with and without weight decay.
      exported: Matrix after the exported step, with and without weight decay.
    """
    pairs = (own, exported)
    decayed = [np.abs(with_decay - without) > limit * np.abs(p) for with_decay, without in pairs]
    updates = [without - p for _, without in pairs]
    tiny = [np.abs(u * p) <= ROUNDING * np.sqrt(np.mean(u**2)) * np.abs(p) for u in updates]
    return (decayed[0] != decayed[1]) & tiny[0] & tiny[1]


def _relative_l2(value: Any, expected: Any, where: Any = True) -> float:
    """Returns the L2 norm of the difference relative to that of `expected`; inf instead of NaN."""
    value, expected = np.float64(value), np.float64(expected)
    distance = np.sqrt(np.sum((value - expected) ** 2, where=where))
    size = max(np.linalg.norm(expected), np.finfo(np.float32).tiny)
    return float(distance / size) if np.isfinite(distance) else float("inf")


def _state_distance(state: State, expected: State) -> float:
    """Returns the largest relative L2 distance of the entries of a state.

    The distance of a scalar is the absolute difference, divided by the expected value if its
    magnitude is above 1.
    """
    worst = 0.0
    for name, value in state.items():
        if isinstance(value, list):
            pairs = zip(value, expected[name], strict=True)
            worst = max(worst, *(_relative_l2(a, b) for a, b in pairs))
        else:
            a, b = np.float64(value), np.float64(expected[name])
            distance = np.max(np.abs(a - b) / np.maximum(1.0, np.abs(b)))
            worst = max(worst, float(distance) if np.isfinite(distance) else float("inf"))
    return worst
