"""The candidate optimizer as an optax chain.

`evolved_muon` is the policy for matrices. `candidate_optimizer` combines it with AdamW by
`optax.partition`. The parts of an update have the same order as in NanoChat: clipping, Muon, trust
ratio, multiplier, decay and learning rate.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nanoevolve_jax.policy.boundary import (
    at_boundary,
    cast_like,
    only_updated,
    require_arrays,
    require_horizon,
)
from nanoevolve_jax.policy.gate import gated
from nanoevolve_jax.policy.labels import MATRIX, OTHER, default_labels
from nanoevolve_jax.policy.muon import INPUTS, OUTPUTS, frobenius, scale_by_muon
from nanoevolve_jax.policy.select import select
from nanoevolve_jax.policy.slots import BUILT_IN, Slots
from nanoevolve_jax.policy.spec import (
    CLIP_GLOBAL_NORM,
    CLIP_UPDATE_RMS,
    DECAY_CAUTIOUS,
    DECAY_NONE,
    OptimizerSpec,
)
from nanoevolve_jax.policy.stacking import over_stacks

_TINY = 1.2e-38


class AdamWGroup(NamedTuple):
    """AdamW hyperparameters of a group of parameters whose optimizer does not evolve.

    Every field is a number or a traced scalar. The learning rate may also be a schedule, which is a
    function of the step count.

    Attributes:
      learning_rate: Learning rate, at least 0.
      b1: Decay of the first moment, from 0 to below 1.
      b2: Decay of the second moment, from 0 to below 1.
      weight_decay: Weight decay, at least 0, which is multiplied by the learning rate.
      eps: Term above 0 that is added to the square root of the second moment.
    """

    learning_rate: Any
    b1: Any
    b2: Any
    weight_decay: Any
    eps: Any = 1e-10


class CountState(NamedTuple):
    """State of a transform that depends only on the step count."""

    count: jax.Array  # shape=(), dtype=jnp.int32


def _stateless(update: Callable) -> optax.GradientTransformationExtraArgs:
    def update_fn(updates, state, params=None, **extra_args):
        return update(updates, params, **extra_args), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update_fn)


def clip_by_running_norm(spec: OptimizerSpec) -> optax.GradientTransformationExtraArgs:
    """Limits the global gradient norm to `clip_threshold` times its running mean.

    The limit is relative because an absolute one would not transfer to other models.

    Args:
      spec: Policy of numbers or traced scalars.

    Returns:
      A transform whose `update` takes `actuators`, `log_running_norm` and `log_grad_norm` as extra
      arguments, see `gated`.
    """

    def update(updates, params, *, actuators, log_running_norm, log_grad_norm, **extra_args):
        del params, extra_args
        excess = log_grad_norm - log_running_norm - jnp.log(actuators.clip_threshold)
        factor = jnp.exp(-jnp.maximum(excess, 0.0))
        clipped = jax.tree.map(lambda g: (g * factor).astype(g.dtype), updates)
        return select(spec.clip == CLIP_GLOBAL_NORM, clipped, updates)

    return _stateless(update)


def scale_by_trust_ratio(spec: OptimizerSpec) -> optax.GradientTransformationExtraArgs:
    """Scales each update by the clamped ratio of parameter norm to update norm (LARS).

    Args:
      spec: Policy of numbers or traced scalars.

    Returns:
      A transform whose `update` takes `actuators` as an extra argument.

    References:
      LARS (arXiv:1708.03888).
    """

    def scale(u, p, mix):
        p_norm, u_norm = frobenius(p.astype(jnp.float32)), frobenius(u.astype(jnp.float32))
        ratio = jnp.clip(
            p_norm / jnp.maximum(u_norm, _TINY), spec.trust_ratio_min, spec.trust_ratio_max
        )
        return (u * (1.0 - mix + mix * ratio)).astype(u.dtype)

    def update(updates, params, *, actuators, **extra_args):
        del extra_args
        mix = actuators.trust_ratio_mix
        scaled = jax.tree.map(lambda u, p: scale(u, p, mix), updates, params)
        return select(spec.trust_ratio, scaled, updates)

    return _stateless(update)


def scale_by_update_multiplier() -> optax.GradientTransformationExtraArgs:
    """Scales updates by the actuator `update_multiplier`.

    Returns:
      A transform whose `update` takes `actuators` as an extra argument.
    """

    def update(updates, params, *, actuators, **extra_args):
        del params, extra_args
        return jax.tree.map(lambda u: (u * actuators.update_multiplier).astype(u.dtype), updates)

    return _stateless(update)


def clip_update_rms(spec: OptimizerSpec) -> optax.GradientTransformationExtraArgs:
    """Limits the RMS of each update to `clip_threshold` times that of a semi-orthogonal matrix.

    This is the update clipping of Adafactor (arXiv:1804.04235) in units that do not depend on the
    width of the model.

    Args:
      spec: Policy of numbers or traced scalars.

    Returns:
      A transform whose `update` takes `actuators` as an extra argument.
    """

    def clip(u, threshold):
        orthogonal = jnp.sqrt(float(min(u.shape[INPUTS], u.shape[OUTPUTS])))
        excess = frobenius(u.astype(jnp.float32)) / (threshold * orthogonal)
        return (u / jnp.maximum(excess, 1.0)).astype(u.dtype)

    def update(updates, params, *, actuators, **extra_args):
        del params, extra_args
        clipped = jax.tree.map(lambda u: clip(u, actuators.clip_threshold), updates)
        return select(spec.clip == CLIP_UPDATE_RMS, clipped, updates)

    return _stateless(update)


def add_decay(spec: OptimizerSpec, weight_decay: Any) -> optax.GradientTransformationExtraArgs:
    """Adds weight decay, cautious weight decay or neither, as the spec selects.

    Cautious weight decay applies where `update * parameter >= 0`. As in NanoChat, it includes
    entries whose update is 0.

    Args:
      spec: Policy of numbers or traced scalars.
      weight_decay: Weight decay, a number or a schedule of the step count.

    Returns:
      A transform whose `update` needs `params`.
    """

    def init_fn(params):
        del params
        return CountState(jnp.zeros((), jnp.int32))

    def update_fn(updates, state, params=None, **extra_args):
        del extra_args
        rate = weight_decay(state.count) if callable(weight_decay) else weight_decay

        def decay(u, p):
            u32, p32 = u.astype(jnp.float32), p.astype(jnp.float32)
            term = rate * p32
            cautious = jnp.where(u32 * p32 >= 0, term, 0.0)
            term = select(spec.decay == DECAY_CAUTIOUS, cautious, term)
            return select(spec.decay == DECAY_NONE, u32, u32 + term).astype(u.dtype)

        decayed = jax.tree.map(decay, updates, params)
        return decayed, CountState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def scale_by_aspect() -> optax.GradientTransformationExtraArgs:
    """Scales updates, including weight decay, by NanoChat's `sqrt(max(1, outputs / inputs))`.

    Returns:
      A transform for matrices of shape [..., inputs, outputs].
    """

    def update(updates, params, **extra_args):
        del params, extra_args
        factor = lambda u: max(1.0, u.shape[OUTPUTS] / u.shape[INPUTS]) ** 0.5  # noqa: E731
        return jax.tree.map(lambda u: (u * factor(u)).astype(u.dtype), updates)

    return _stateless(update)


def evolved_muon(
    spec: OptimizerSpec,
    learning_rate: Any,
    *,
    total_steps: Any,
    momentum: Any = None,
    weight_decay: Any = 0.0,
    dtype: Any = None,
    data_axis: str | None = None,
    slots: Slots = BUILT_IN,
) -> optax.GradientTransformationExtraArgs:
    """Creates the policy for a tree of matrices.

    Let g be the gradient, m the momentum, lr the learning rate and a the actuators. In the
    baseline, a step of a matrix W is

        m <- m + (1 - beta) (g - m)
        u <- a.update_multiplier * direction(g + beta (m - g))
        W <- W - lr * sqrt(max(1, outputs / inputs)) * (u + weight_decay * W)

    where `direction` is orthogonalisation by Polar Express followed by normalisation by a factored
    second moment, and weight decay applies only where u and W have the same sign. The spec switches
    these parts on or off, and its gate sets the actuators at every step.

    As in `optax.adamw`, updates have the promoted dtype of gradient and parameter, and the state
    keeps its dtypes. A loss or a gradient that is not finite does not enter the averages of the
    sensors.

    Args:
      spec: Policy of numbers, or of traced scalars for a program that can run any spec.
      learning_rate: Learning rate, a number or a schedule of the step count.
      total_steps: Number of steps of the run, at least 1. The windows of the sensors and
        `step_fraction` are relative to it.
      momentum: Momentum coefficient from 0 to below 1, a number or a schedule; by default
        `spec.momentum`.
      weight_decay: Weight decay, a number or a schedule, multiplied by the learning rate.
      dtype: Dtype of the Polar Express iteration; float32 by default.
      data_axis: Mesh axis whose devices share the matrices, see `over_stacks`.
      slots: Functions that replace the built-in ones.

    Returns:
      A transform for kernels of shape [..., inputs, outputs]. Its `update` needs `params`, and
      also `value=loss` unless the gate is known to be off.

    Raises:
      ValueError: If `total_steps` is known and is not an integer of at least 1.

    References:
      Polar Express (arXiv:2505.16932), NorMuon (arXiv:2510.05491), MuonEq (arXiv:2603.28254),
      Muon+ (arXiv:2602.21545), LARS (arXiv:1708.03888), Adafactor (arXiv:1804.04235).
    """

    def make(spec, learning_rate, total_steps, momentum, weight_decay):
        direction = optax.chain(
            clip_by_running_norm(spec),
            scale_by_muon(spec, momentum, dtype=dtype, slots=slots),
            scale_by_trust_ratio(spec),
            scale_by_update_multiplier(),
            clip_update_rms(spec),
        )
        policy = optax.chain(
            gated(direction, spec, total_steps=total_steps, slots=slots),
            add_decay(spec, weight_decay),
            scale_by_aspect(),
            optax.scale_by_learning_rate(learning_rate),
        )
        return over_stacks(policy, data_axis)

    total_steps = require_horizon(total_steps)
    return at_boundary(make, spec, learning_rate, total_steps, momentum, weight_decay)


def adamw(group: AdamWGroup) -> optax.GradientTransformation:
    """Creates AdamW for a group of parameters whose optimizer does not evolve.

    Args:
      group: Hyperparameters of the group.

    Returns:
      The AdamW transform.
    """
    return optax.chain(
        optax.scale_by_adam(group.b1, group.b2, group.eps),
        optax.add_decayed_weights(group.weight_decay),
        optax.scale_by_learning_rate(group.learning_rate),
    )


def beside_adamw(
    policy: optax.GradientTransformation,
    others: Mapping[str, AdamWGroup] | AdamWGroup,
    labels: Callable[[Any], Any] | Any,
) -> optax.GradientTransformationExtraArgs:
    """Combines a transform for matrices with AdamW for all other parameters.

    Args:
      policy: Transform for the arrays with the label `matrix`.
      others: AdamW hyperparameters by label, or a single group for the label `other`.
      labels: Tree of labels, or a function that maps parameters to such a tree.

    Returns:
      A transform for all parameters. Leaves whose update is None are left out.
    """
    groups = {OTHER: others} if isinstance(others, AdamWGroup) else dict(others)
    transforms = {MATRIX: policy} | {name: adamw(group) for name, group in groups.items()}
    inner = optax.partition(transforms, labels)

    def init_fn(params):
        require_arrays(params)
        return inner.init(params)

    def update_fn(updates, state, params=None, **extra_args):
        params = None if params is None else only_updated(params, updates)
        updates, following = inner.update(updates, state, params, **extra_args)
        return updates, cast_like(following, state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def candidate_optimizer(
    spec: OptimizerSpec,
    learning_rate: Any,
    *,
    total_steps: Any,
    others: Mapping[str, AdamWGroup] | AdamWGroup,
    labels: Callable[[Any], Any] | Any = None,
    momentum: Any = None,
    weight_decay: Any = 0.0,
    dtype: Any = None,
    data_axis: str | None = None,
    slots: Slots = BUILT_IN,
) -> optax.GradientTransformationExtraArgs:
    """Creates the policy for matrices, with AdamW for all other parameters.

    Args:
      spec: Policy of numbers or traced scalars.
      learning_rate: Learning rate of the matrices, a number or a schedule of the step count.
      total_steps: Number of steps of the run, at least 1.
      others: AdamW hyperparameters by label, or a single group for the label `other`.
      labels: Tree of labels, or a function that maps parameters to such a tree. A label is `matrix`
        or a key of `others`. By default, `default_labels` computes the labels.
      momentum: Momentum coefficient of the matrices, a number or a schedule; by default
        `spec.momentum`.
      weight_decay: Weight decay of the matrices, a number or a schedule, multiplied by their
        learning rate.
      dtype: Dtype of the Polar Express iteration; float32 by default.
      data_axis: Mesh axis whose devices share the matrices, see `over_stacks`.
      slots: Functions that replace the built-in ones.

    Returns:
      A transform whose update is called as `update(grads, state, params, value=loss)`. `value` may
      be omitted if the gate is known to be off.

    Raises:
      ValueError: If `total_steps` is known and is not an integer of at least 1.
    """
    policy = evolved_muon(
        spec,
        learning_rate,
        total_steps=total_steps,
        momentum=momentum,
        weight_decay=weight_decay,
        dtype=dtype,
        data_axis=data_axis,
        slots=slots,
    )
    return beside_adamw(policy, others, default_labels if labels is None else labels)
