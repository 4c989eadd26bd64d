"""Pure functions that train one candidate: initial state, training step, segment and validation.

`population.py` maps these functions over lanes and devices.
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

DATA = "data"  # mesh axis whose devices share one candidate
TELEMETRY = (*Sensors._fields, "gate", *Actuators._fields, "loss", "log_grad_norm")
"""Names of the telemetry columns."""

ALIVE = -1  # `failed_step` of a run that has not failed
FAILURES = ("none", "non-finite loss", "non-finite gradient")
NO_FAILURE, LOSS_FAILURE, GRADIENT_FAILURE = range(3)
_LOG_NORM_LIMIT = 44.0  # log of about the largest norm whose square fits in float32


class Candidate(NamedTuple):
    """A policy and its training recipe. All leaves are numeric except `code`."""

    spec: OptimizerSpec
    recipe: Recipe
    code: Code | None = None  # rewritten functions, a static part of the program


class TrainState(NamedTuple):
    """State of one run between two segments."""

    params: Any  # parameters of the model
    opt_state: Any  # state of the candidate's optimizer
    failed_step: jax.Array  # first non-finite step, or ALIVE; shape=(), dtype=jnp.int32
    failure: jax.Array  # index into FAILURES; shape=(), dtype=jnp.int32


class Segment(NamedTuple):
    """Inputs of K training steps: one batch per step, and gate values that override the policy."""

    inputs: Any  # input tokens, int32[K, B, T]
    targets: Any  # target tokens, int32[K, B, T]
    gate: Any  # gate values, float32[K]; where NaN, the policy computes its own gate


def segment_of(rows: Any) -> Segment:
    """Returns a segment in which the policy computes its own gate at every step.

    Args:
      rows: Rows of tokens, int32[..., B, T + 1].
    """
    own = np.full(rows.shape[:-2], np.nan, np.float32)
    return Segment(rows[..., :-1], rows[..., 1:], own)


class Task(NamedTuple):
    """Static part of a training program. Each distinct task is compiled separately."""

    model: gpt.GPTConfig  # architecture
    batch_size: int  # rows per step
    dtype: Any = jnp.float32  # dtype of the Polar Express iteration
    data_parallel: int = 1  # devices per candidate

    @property
    def batch_tokens(self) -> float:
        """Number of tokens per step."""
        return float(self.batch_size * self.model.sequence_len)

    def optimizer(self, candidate: Candidate, total_steps: Any):
        """Returns the optimizer of a candidate.

        Args:
          candidate: Policy and recipe, whose numbers may be traced.
          total_steps: Horizon, int32 scalar, which may be traced.
        """
        return nanochat_optimizer(
            candidate.spec,
            candidate.recipe,
            total_steps=total_steps,
            dtype=self.dtype,
            data_axis=DATA if self.data_parallel > 1 else None,
            slots=candidate.code.slots() if candidate.code else BUILT_IN,
        )


def init_state(task: Task, candidate: Candidate, seed: Any, total_steps: Any) -> TrainState:
    """Returns the initial state of a run, whose parameters depend only on the task and the seed.

    Args:
      task: Static description of the training.
      candidate: Policy and recipe.
      seed: Seed of the parameters, uint32 scalar.
      total_steps: Horizon, int32 scalar.
    """
    params = gpt.init_params(task.model, jax.random.key(seed))
    return state_from_params(task, candidate, params, total_steps)


def state_from_params(
    task: Task, candidate: Candidate, params: Any, total_steps: Any
) -> TrainState:
    """Returns the initial state of a run with given parameters.

    Args:
      task: Static description of the training.
      candidate: Policy and recipe.
      params: Parameters of the model.
      total_steps: Horizon, int32 scalar.
    """
    return TrainState(
        params=params,
        opt_state=task.optimizer(candidate, total_steps).init(params),
        failed_step=jnp.int32(ALIVE),
        failure=jnp.int32(NO_FAILURE),
    )


def read_telemetry(opt_state: Any, loss: jax.Array) -> jax.Array:
    """Returns the telemetry of one step, float32[14] with columns `TELEMETRY`.

    Args:
      opt_state: Optimizer state after the step.
      loss: Training loss of the step, float32 scalar.
    """
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
    """Trains for one step: computes the loss and gradient, and applies the policy's update.

    Args:
      task: Static description of the training.
      state: State before the step.
      candidate: Policy and recipe.
      batch: One step of a segment, with inputs and targets int32[B, T] and gate float32[].
      step: Index of the step, int32 scalar.
      total_steps: Horizon, int32 scalar.

    Returns:
      Tuple of the state after the step and the telemetry, float32[14].
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
    """Trains for K steps, or fewer if the horizon is reached first.

    The number of steps is traced, so one program serves every horizon.

    Args:
      task: Static description of the training.
      state: State before the segment.
      candidate: Policy and recipe.
      segment: Inputs of K steps.
      start: Index of the first step, int32 scalar.
      total_steps: Horizon, int32 scalar.

    Returns:
      Tuple of the state after the segment and the telemetry, float32[K, 14]. Telemetry rows beyond
      the horizon are 0.
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
    """Returns the sums needed for bits per byte, per batch, so that the host can add in float64.

    Args:
      task: Static description of the training.
      params: Parameters of the model.
      rows: Validation rows, int32[N, B, T + 1].
      token_bytes: Bytes per token, int32[vocab].

    Returns:
      Tuple of the summed loss in nats, float32[N], and the number of bytes, int32[N].
    """

    def body(batch):
        losses = token_losses(gpt.apply(task.model, params, batch[:, :-1]), batch[:, 1:])
        return nats_and_bytes(losses, batch[:, 1:], token_bytes)

    return jax.lax.map(body, rows)


def over_lanes(function: Callable, lanes: int, in_axes: Any) -> Callable:
    """Returns a function mapped over a leading axis of size `lanes`.

    A single lane is squeezed instead of vmapped, because on a CPU a batched matrix product of one
    matrix is slower than an unbatched product.

    Args:
      function: Function of one lane.
      lanes: Size of the leading axis.
      in_axes: Axis to map per argument, 0 or None, as for `jax.vmap`.
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
