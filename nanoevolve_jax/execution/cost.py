"""Counted cost: FLOPs of a training step for a spec, without running or compiling it.

XLA's analysis of the lowered program is the same on every machine and takes no compile; the
optimizer step has no loops, so nothing is counted once that runs often. Time is measured
elsewhere and never enters a score.
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

_ANY_RECIPE = Recipe(*[0.1] * len(Recipe._fields))  # its numbers do not change the operations


def optimizer_step(task: Task, spec: OptimizerSpec) -> tuple[Callable, tuple[Any, ...]]:
    """A specialised optimizer step and its abstract arguments, ready to be lowered."""
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
    """Returns the FLOPs of a function of abstract arguments, transcendental functions included.

    XLA counts arithmetic in the lowered program; `uncounted` adds what XLA leaves out.
    """
    traced = jax.jit(function).trace(*args)
    counted = traced.lower().cost_analysis() or {}
    return float(counted.get("flops", 0.0)) + uncounted_flops(traced.jaxpr)


@functools.lru_cache(maxsize=4096)
def _optimizer_flops(task: Task, spec: OptimizerSpec) -> float:
    return lowered_flops(*optimizer_step(task, spec))


def structure(spec: OptimizerSpec) -> OptimizerSpec:
    """The spec with every number that cannot change its operations at its default.

    Switches, `ns_steps` and the poles of the orthogonal mix decide what is computed, so
    thousands of specs need a handful of lowerings.
    """
    spec = canonical(spec)
    for path, field in FIELDS.items():
        decides = field.integer or field.changes_operations
        if not decides and get_field(spec, path) != field.default:
            spec = set_field(spec, path, field.default)
    return spec


@functools.cache
def matrix_shapes(model: gpt.GPTConfig) -> tuple[tuple[int, int], ...]:
    """(inputs, outputs) of every matrix that a policy updates, in the order of the parameters."""
    params = jax.eval_shape(lambda: gpt.init_params(model, jax.random.key(0)))
    labels = nanochat_labels(params)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(labels), strict=True)
    return tuple(leaf.shape for leaf, label in pairs if label == MATRIX)


def step_flops(task: Task, spec: OptimizerSpec, code: Code | None = None) -> float:
    """FLOPs of one training step, model and optimizer, under a spec of concrete numbers.

    Rewritten code counts as the built-in functions and what its certificate says it takes more.
    """
    model = task.model.flops_per_token * task.batch_tokens
    more = code_flops(code, matrix_shapes(task.model)) if code else 0.0
    return float(model + _optimizer_flops(task, structure(spec)) + more)
