"""Cost of a training step in FLOPs, counted without running or compiling the step.

XLA analyses the lowered program, so the result is the same on every machine. The analysis counts
the body of a loop only once, but the optimizer step does not contain loops. Wall-clock time is not
part of a score.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nanoevolve_jax.execution.schedules import Recipe, nanochat_labels, nanochat_optimizer
from nanoevolve_jax.execution.train import Task
from nanoevolve_jax.execution.uncounted import uncounted_flops
from nanoevolve_jax.model import gpt
from nanoevolve_jax.policy.canonical import canonical
from nanoevolve_jax.policy.certified import Code, code_flops
from nanoevolve_jax.policy.labels import MATRIX
from nanoevolve_jax.policy.spec import FIELDS, OptimizerSpec, get_field, set_field

_ANY_RECIPE = Recipe(*[0.1] * len(Recipe._fields))  # the values do not affect the operations


def optimizer_step(task: Task, spec: OptimizerSpec) -> tuple[Callable, tuple[Any, ...]]:
    """Returns an optimizer step specialised to a spec, and its abstract arguments.

    Args:
      task: Static description of the training.
      spec: Policy of concrete numbers.

    Returns:
      Tuple of the function and its arguments as shapes and dtypes.
    """
    optimizer = nanochat_optimizer(
        spec,
        _ANY_RECIPE,
        total_steps=1000,
        dtype=task.dtype,
    )
    params = jax.eval_shape(lambda: gpt.init_params(task.model, jax.random.key(0)))
    state = jax.eval_shape(optimizer.init, params)

    def step(grads, state, params, value):
        return optimizer.update(grads, state, params, value=value)

    return step, (params, state, params, jax.ShapeDtypeStruct((), jnp.float32))


def lowered_flops(function: Callable, args: tuple[Any, ...]) -> float:
    """Returns the FLOPs of a function, including transcendental functions.

    XLA counts the arithmetic of the lowered program, and `uncounted_flops` adds the rest.

    Args:
      function: Function to analyse.
      args: Arguments as arrays or as shapes and dtypes.
    """
    traced = jax.jit(function).trace(*args)
    counted = traced.lower().cost_analysis() or {}
    return float(counted.get("flops", 0.0)) + uncounted_flops(traced.jaxpr)


@functools.lru_cache(maxsize=4096)
def _optimizer_flops(task: Task, spec: OptimizerSpec) -> float:
    return lowered_flops(*optimizer_step(task, spec))


def structure(spec: OptimizerSpec) -> OptimizerSpec:
    """Returns a spec with default values for all numbers that do not change the operations.

    Only switches, `ns_steps` and the poles of the orthogonal mix change the operations, so
    thousands of specs need only a few lowerings.

    Args:
      spec: Policy of concrete numbers.
    """
    spec = canonical(spec)
    for path, field in FIELDS.items():
        decides = field.integer or field.changes_operations
        if not decides and get_field(spec, path) != field.default:
            spec = set_field(spec, path, field.default)
    return spec


@functools.cache
def matrix_shapes(model: gpt.GPTConfig) -> tuple[tuple[int, int], ...]:
    """Returns the shape of every matrix that a policy updates, in parameter order.

    Args:
      model: Architecture of the model.

    Returns:
      Pair (inputs, outputs) per matrix.
    """
    params = jax.eval_shape(lambda: gpt.init_params(model, jax.random.key(0)))
    labels = nanochat_labels(params)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(labels), strict=True)
    return tuple(leaf.shape for leaf, label in pairs if label == MATRIX)


def step_flops(task: Task, spec: OptimizerSpec, code: Code | None = None) -> float:
    """Returns the FLOPs of one training step, including model, optimizer and rewritten code.

    Args:
      task: Static description of the training.
      spec: Policy of concrete numbers.
      code: Rewritten functions, if any. Their certificates hold the difference in FLOPs from the
        built-in functions.
    """
    model = task.model.flops_per_token * task.batch_tokens
    more = code_flops(code, matrix_shapes(task.model)) if code else 0.0
    return float(model + _optimizer_flops(task, structure(spec)) + more)
