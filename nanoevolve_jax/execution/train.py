"""One candidate's training as pure functions: initial state, one segment, validation.

Nothing here knows about lanes or devices; `population.py` maps these over both.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nanoevolve_jax.execution.schedules import Recipe, nanochat_optimizer
from nanoevolve_jax.model import gpt
from nanoevolve_jax.model.loss import mean_loss, nats_and_bytes, token_losses
from nanoevolve_jax.policy.certified import Code
from nanoevolve_jax.policy.slots import BUILT_IN
from nanoevolve_jax.policy.spec import Actuators, OptimizerSpec, Sensors

DATA = "data"  # the mesh axis whose devices share one candidate, where there is one
TELEMETRY = (*Sensors._fields, "gate", *Actuators._fields, "loss", "log_grad_norm")
"""Names of the columns of a segment's telemetry."""

ALIVE = -1
FAILURES = ("none", "non-finite loss", "non-finite gradient")
NO_FAILURE, LOSS_FAILURE, GRADIENT_FAILURE = range(3)
_LOG_NORM_LIMIT = 44.0  # the logarithm of a norm whose square overflows float32


class Candidate(NamedTuple):
    """What is trained: a policy and the recipe around it, numbers but for rewritten code."""

    spec: OptimizerSpec
    recipe: Recipe
    code: Code | None = None  # None inside of programs, which are made for one code


class TrainState(NamedTuple):
    """State of one run between segments."""

    params: Any
    opt_state: Any
    failed_step: jax.Array  # shape=(), dtype=jnp.int32; ALIVE, or the first non-finite step
    failure: jax.Array  # shape=(), dtype=jnp.int32; index into FAILURES


class Segment(NamedTuple):
    """What K steps are fed: one batch a step, and what holds the gate, if anything does."""

    inputs: Any  # int32[K, B, T]
    targets: Any  # int32[K, B, T]
    gate: Any  # float32[K]; NaN: the policy's own


def segment_of(rows: Any) -> Segment:
    """The undisturbed segment of int32[..., B, T + 1] rows: targets are inputs shifted by one."""
    own = np.full(rows.shape[:-2], np.nan, np.float32)
    return Segment(rows[..., :-1], rows[..., 1:], own)


class Task(NamedTuple):
    """The static part of a training program: what changes it means compiling anew."""

    model: gpt.GPTConfig
    batch_size: int  # rows a step
    dtype: Any = jnp.float32  # of the Polar Express iteration
    data_parallel: int = 1  # devices that share one candidate
    code: Code | None = None  # in the place of built-in functions

    @property
    def batch_tokens(self) -> float:
        return float(self.batch_size * self.model.sequence_len)

    def optimizer(self, candidate: Candidate, total_steps: Any):
        """The candidate's optimizer at a horizon; both may be traced."""
        return nanochat_optimizer(
            candidate.spec,
            candidate.recipe,
            total_steps=total_steps,
            dtype=self.dtype,
            data_axis=DATA if self.data_parallel > 1 else None,
            slots=self.code.slots() if self.code else BUILT_IN,
        )


def init_state(task: Task, candidate: Candidate, seed: Any, total_steps: Any) -> TrainState:
    """A fresh run; the parameters depend on the seed alone.

    Args:
      task: static description.
      candidate: policy and recipe.
      seed: uint32 scalar.
      total_steps: horizon, int32 scalar.
    """
    params = gpt.init_params(task.model, jax.random.key(seed))
    return state_from_params(task, candidate, params, total_steps)


def state_from_params(
    task: Task, candidate: Candidate, params: Any, total_steps: Any
) -> TrainState:
    """A run that starts from given parameters."""
    return TrainState(
        params=params,
        opt_state=task.optimizer(candidate, total_steps).init(params),
        failed_step=jnp.int32(ALIVE),
        failure=jnp.int32(NO_FAILURE),
    )


def read_telemetry(opt_state: Any, loss: jax.Array) -> jax.Array:
    """One step's row of `TELEMETRY`; float32[14]."""
    read = lambda key: optax.tree.get(opt_state, key)  # noqa: E731
    return jnp.stack(
        [*read("sensors"), read("gate"), *read("actuators"), loss, read("log_grad_norm")]
    )


def train_step(
    task: Task,
    state: TrainState,
    candidate: Candidate,
    batch: Segment,
    step: Any,
    total_steps: Any,
) -> tuple[TrainState, jax.Array]:
    """One optimizer step.

    Args:
      task: static description.
      state: before the step.
      candidate: policy and recipe.
      batch: one step of a segment, without its leading axis.
      step: int32 scalar.
      total_steps: horizon, int32 scalar.

    Returns:
      (state after the step, float32[14] telemetry).
    """

    def loss_fn(params):
        return mean_loss(gpt.apply(task.model, params, batch.inputs), batch.targets)

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    updates, opt_state = task.optimizer(candidate, total_steps).update(
        grads, state.opt_state, state.params, value=loss, gate=batch.gate
    )
    telemetry = read_telemetry(opt_state, loss)
    log_grad_norm = telemetry[TELEMETRY.index("log_grad_norm")]
    bad_gradient = jnp.isnan(log_grad_norm) | (log_grad_norm > _LOG_NORM_LIMIT)
    failure = jnp.where(
        jnp.isfinite(loss),
        jnp.where(bad_gradient, GRADIENT_FAILURE, NO_FAILURE),
        LOSS_FAILURE,
    ).astype(jnp.int32)
    first = (state.failed_step == ALIVE) & (failure != NO_FAILURE)
    return (
        TrainState(
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            failed_step=jnp.where(first, jnp.int32(step), state.failed_step),
            failure=jnp.where(first, failure, state.failure),
        ),
        telemetry,
    )


def train_segment(
    task: Task,
    state: TrainState,
    candidate: Candidate,
    segment: Segment,
    start: Any,
    total_steps: Any,
) -> tuple[TrainState, jax.Array]:
    """Up to K steps, never beyond the horizon; the trip count is traced, so any horizon runs.

    Args:
      task: static description.
      state: before the segment.
      candidate: policy and recipe.
      segment: K steps of tokens and gates.
      start: int32 scalar, the first step's number.
      total_steps: horizon, int32 scalar.

    Returns:
      (state, float32[K, 14] telemetry; rows beyond the horizon are 0).
    """
    length = segment.gate.shape[0]

    def body(i, carry):
        state, telemetry = carry
        batch = jax.tree.map(lambda x: x[i], segment)
        state, row = train_step(task, state, candidate, batch, start + i, total_steps)
        return state, telemetry.at[i].set(row)

    telemetry = jnp.zeros((length, len(TELEMETRY)), jnp.float32)
    steps = jnp.minimum(length, total_steps - start)
    return jax.lax.fori_loop(0, steps, body, (state, telemetry))


def evaluate(
    task: Task, params: Any, rows: jax.Array, token_bytes: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Sums for bits per byte, one pair a batch so that the host can add in float64.

    Args:
      task: static description.
      params: of the model.
      rows: int32[N, B, T + 1].
      token_bytes: int32[vocab].

    Returns:
      (nats float32[N], bytes int32[N]).
    """

    def body(batch):
        losses = token_losses(gpt.apply(task.model, params, batch[:, :-1]), batch[:, 1:])
        return nats_and_bytes(losses, batch[:, 1:], token_bytes)

    return jax.lax.map(body, rows)


def over_lanes(function: Callable, lanes: int, in_axes: Any) -> Callable:
    """Maps over a leading axis of `lanes`; one lane is squeezed instead of batched.

    A batched dot of one matrix is slower on a CPU than a plain one.
    """
    if lanes > 1:
        return jax.vmap(function, in_axes=in_axes)

    def squeezed(*args):
        args = [
            jax.tree.map(lambda x: x[0], arg) if axis == 0 else arg
            for arg, axis in zip(args, in_axes, strict=True)
        ]
        return jax.tree.map(lambda x: x[None], function(*args))

    return squeezed
