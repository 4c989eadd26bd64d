"""Compares an exported file with the library's optimizer, step for step.

Both optimizers start every step from the library's state, so the comparison measures the rounding
of one step and not its growth over fifty steps.

The measure is the distance of the parameters after a step: the L2 norm of their difference over
the L2 norm of the parameters, for the worst matrix and step. The learning rate is set at every
step so that the matrix that moves most moves by a twentieth of its norm. The limit `PARAMETERS`
therefore requires updates to agree within 2e-5. That is a few times the rounding error of Polar
Express in float32, and a fifth of the effect of a coefficient that is wrong by 1e-4. The states
after a step are compared too, because a mistake in them would show one step later.

Two effects of rounding are allowed for, and counted:

*   Cautious decay depends on the sign of update times parameter, which may flip where the update is
    within rounding of 0. An entry counts as a flip if only one of the two optimizers decayed it and
    if, in both, `abs(update * parameter)` is at most `ROUNDING * rms(update) * abs(parameter)`.
    Flips are left out of the L2 norm.
*   The slope of the loss is a difference of averages over a difference of averages, which are
    nearly equal at the first steps of a run. There, float32 determines a gate that reads it only
    to about 1e-5. A step that would fail is therefore compared once more with the library's gate
    held at the exported one, if the two differ by at most `GATE`.
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
STATES = 5e-5  # the same for states, where second moments square the rounding of directions
ROUNDING = 3e-5  # of an entry of the update, in RMS of the update
GATE = 1e-4  # largest difference of two gates that is rounding
HELD = 0.2  # largest share of steps with a held gate
FLIPS = 1e-3  # largest share of entries that flip
Shape = tuple[int, int]  # (inputs, outputs)
SHAPES: tuple[Shape, ...] = ((8, 8), (12, 12), (8, 24), (8, 24), (24, 8))
_WEIGHT_DECAY = 0.1
_MOVE = 0.05  # relative distance by which a step moves the matrix that moves most
_SPIKE = 20  # the step whose gradient is 30 times as large
_UNSENSED = 30  # the step whose loss is NaN


class Agreement(NamedTuple):
    """Distance of an export from the library's optimizer, over all matrices and steps."""

    max_relative_l2: float  # of the parameters after a step
    state: float  # relative L2 distance of the states after a step
    flips: int  # entries of the cautious mask that flip by rounding
    held: int  # steps that were compared with a held gate
    entries: int  # of all matrices in all steps
    steps: int

    @property
    def passes(self) -> bool:
        """Whether every distance and count is within its limit."""
        return bool(
            self.max_relative_l2 <= PARAMETERS
            and self.state <= STATES
            and self.flips <= FLIPS * self.entries
            and self.held <= HELD * self.steps
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the entry of an evidence card; a distance that is not finite is null."""
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
    """Compares a policy with its file for optax; returns the result as a card holds it.

    A file that cannot be compared, such as one that does not terminate, does not agree. Code must
    not be able to prevent a card from being written.

    Args:
      name: Id of the policy.
      spec: The policy.
      code: Its rewritten functions.
      check: Compares a policy with the text of a file.
      log: Callback that takes one line for the user.
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
    """Compares two optimizers over random gradients, every step from the state of `own`."""
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
    """Returns the agreement with one more step."""
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
    """Returns the distances of parameters and states after one step, and the flips."""
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
    """Compares a file exported for optax with the policy that it was made from.

    The file is executed, and with it the sources of rewritten functions.

    Args:
      spec: Policy of concrete numbers.
      source: Text of the exported file.
      code: Rewritten functions of the policy.
      steps: Number of steps to compare.
    """
    exported = optax_optimizer(load_module(source), steps)
    return compare(spec, library_optimizer(spec, steps, code), exported, steps, shapes_for(code))


def shapes_for(code: Code | None) -> Sequence[Shape]:
    """Returns the matrices of a comparison: square, wide and tall ones.

    A rewritten direction has programs only for the matrices for which it was certified. Of these,
    the smallest of each form is returned, twice.
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
    """Compares a file exported for PyTorch with the policy that it was made from.

    Raises:
      ImportError: If torch is not installed.
    """
    import torch

    exported = torch_optimizer(load_module(source), steps)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the matrices are so small that threads would only wait
    try:
        return compare(spec, library_optimizer(spec, steps), exported, steps)
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
    """Returns the entries that only one of two steps decayed because of rounding.

    Args:
      p: Matrix before the step.
      limit: Share of `p` above which a change counts as decay.
      own: Matrix after the library's step, with and without weight decay.
      exported: Matrix after the exported step, with and without weight decay.
    """
    pairs = (own, exported)
    decayed = [np.abs(with_decay - without) > limit * np.abs(p) for with_decay, without in pairs]
    updates = [without - p for _, without in pairs]
    tiny = [np.abs(u * p) <= ROUNDING * np.sqrt(np.mean(u**2)) * np.abs(p) for u in updates]
    return (decayed[0] != decayed[1]) & tiny[0] & tiny[1]


def _relative_l2(value: Any, expected: Any, where: Any = True) -> float:
    """Returns the L2 norm of the difference over that of `expected`; infinite if not finite."""
    value, expected = np.float64(value), np.float64(expected)
    distance = np.sqrt(np.sum((value - expected) ** 2, where=where))
    size = max(np.linalg.norm(expected), np.finfo(np.float32).tiny)
    return float(distance / size) if np.isfinite(distance) else float("inf")


def _state_distance(state: State, expected: State) -> float:
    """Returns the relative L2 distance of the worst entry of a state.

    For a scalar it is the difference, divided by the expected value where that is above 1.
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
