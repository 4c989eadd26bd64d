"""Muon as in NanoChat, with switches for the parts that a policy may turn off.

One step of a matrix consists of these parts:

1.  Nesterov momentum.
2.  Row equilibration (MuonEq, arXiv:2603.28254).
3.  Polar Express (arXiv:2505.16932), which approximates the orthogonal factor.
4.  Renormalisation to the Frobenius norm of a semi-orthogonal matrix (Muon+, arXiv:2602.21545).
5.  Division by a factored second moment (NorMuon, arXiv:2510.05491).

`transform.py` then applies weight decay and the learning rate.

Matrices are Flax kernels of shape [..., inputs, outputs]. NanoChat uses PyTorch's layout,
[outputs, inputs], so its rows are columns here, and its wide matrices are tall here.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nanoevolve_jax.policy.select import select
from nanoevolve_jax.policy.slots import BUILT_IN, Knobs, Slots, knobs_of
from nanoevolve_jax.policy.spec import POST, PRE, OptimizerSpec

# Amsel, Persson, Musco, Gower 2025 (arXiv:2505.16932), safety factor 2e-2, cushion 2.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
INPUTS, OUTPUTS = -2, -1
_SMALL_NORM = 1e-6
_PRESCALE_ABOVE = 1e15  # squares of larger entries would overflow float32


class MuonState(NamedTuple):
    """State of `scale_by_muon`."""

    count: jax.Array  # shape=(), dtype=jnp.int32
    momentum: Any  # tree with the shapes of the matrices
    second_moment: Any  # tree of [..., 1, outputs] or [..., inputs, 1], whichever is longer


def frobenius(x: jax.Array) -> jax.Array:
    """Returns the Frobenius norm of each matrix.

    Args:
      x: Matrices; [..., inputs, outputs].

    Returns:
      Norms; [..., 1, 1].
    """
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=(INPUTS, OUTPUTS), keepdims=True))


def prescale(x: jax.Array) -> jax.Array:
    """Divides each matrix that has entries above 1e15 by a power of two, which does not round.

    Args:
      x: Matrices; float32[..., inputs, outputs].

    Returns:
      Matrices whose squared entries do not overflow; float32[..., inputs, outputs].
    """
    peak = jnp.max(jnp.abs(x), axis=(INPUTS, OUTPUTS), keepdims=True)
    bits = jax.lax.bitcast_convert_type(peak, jnp.int32) & 0x7F800000  # mask of the exponent
    power = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return x / jnp.where(peak > _PRESCALE_ABOVE, power, 1.0)


def equilibrate(x: jax.Array) -> jax.Array:
    """Scales each column of a matrix to the root mean square of its columns' norms (MuonEq).

    Args:
      x: Matrices; [..., inputs, outputs].

    Returns:
      Scaled matrices; [..., inputs, outputs]. A column of zeros remains zero.
    """
    target = frobenius(x) / math.sqrt(x.shape[OUTPUTS])
    norms = jnp.sqrt(jnp.sum(jnp.square(x), axis=INPUTS, keepdims=True))
    return x * (target / jnp.maximum(norms, _SMALL_NORM))


def polar_express(x: jax.Array, ns_steps: Any) -> jax.Array:
    """Moves the singular values of matrices towards 1 by Polar Express (arXiv:2505.16932).

    The Gram matrix is computed on the shorter side. A square matrix is treated like one that is
    wide in PyTorch's layout.

    Args:
      x: Matrices with a Frobenius norm below 1; [..., inputs, outputs].
      ns_steps: Number of iterations, from 1 to 5; an integer or a traced scalar.

    Returns:
      Matrices with the same singular vectors; [..., inputs, outputs].
    """
    tall = x.shape[OUTPUTS] > x.shape[INPUTS]
    for i, (a, b, c) in enumerate(POLAR_EXPRESS):
        gram = x @ x.mT if tall else x.mT @ x
        poly = b * gram + c * (gram @ gram)
        following = a * x + (poly @ x if tall else x @ poly)
        x = select(i < ns_steps, following, x)
    return x


def renormalise(x: jax.Array) -> jax.Array:
    """Scales matrices to the Frobenius norm of semi-orthogonal ones, `sqrt(min(inputs, outputs))`.

    Args:
      x: Matrices; [..., inputs, outputs].

    Returns:
      Scaled matrices; [..., inputs, outputs].
    """
    target = math.sqrt(min(x.shape[INPUTS], x.shape[OUTPUTS]))
    return x * (target / jnp.maximum(frobenius(x), _SMALL_NORM))


def direction(g: jax.Array, knobs: Knobs, dtype: Any) -> jax.Array:
    """Returns the orthogonal factor of each matrix, the normalised matrix, or a mix of both.

    Both have the Frobenius norm of a semi-orthogonal matrix, so switching from one to the other
    does not change the size of an update.

    Args:
      g: Momentum or gradients; float32[..., inputs, outputs].
      knobs: Actuators and switches; scalars.
      dtype: Dtype of the Polar Express iteration. NanoChat uses bfloat16 only if bfloat16 is its
        compute dtype.

    Returns:
      Directions; float32[..., inputs, outputs].
    """
    g = prescale(g)
    x = equilibrate(g.astype(dtype).astype(jnp.float32))
    x = x / (frobenius(x) * 1.01 + _SMALL_NORM)
    x = polar_express(x.astype(dtype), knobs.ns_steps)
    orthogonal = renormalise(x.astype(jnp.float32))
    raw = renormalise(g)
    mix = knobs.orthogonal_mix
    mixed = mix * orthogonal + (1.0 - mix) * raw
    mixed = select(mix >= 1.0, orthogonal, mixed)
    return select(knobs.orthogonalize, mixed, raw)


def reduced_axis(shape: tuple[int, ...]) -> int:
    """Returns the axis over which the factored second moment is averaged.

    Args:
      shape: Shape of the matrices, (..., inputs, outputs).

    Returns:
      -2 or -1, the axis of the shorter side.
    """
    return INPUTS if shape[OUTPUTS] >= shape[INPUTS] else OUTPUTS


def second_moment_like(x: jax.Array) -> jax.Array:
    """Returns the initial factored second moment of matrices.

    Args:
      x: Matrices; [..., inputs, outputs].

    Returns:
      Zeros; [..., 1, outputs] if `outputs >= inputs`, otherwise [..., inputs, 1].
    """
    shape = list(x.shape)
    shape[reduced_axis(x.shape)] = 1
    return jnp.zeros(shape, x.dtype)


def normalise_variance(
    u: jax.Array, second_moment: jax.Array, beta: Any
) -> tuple[jax.Array, jax.Array]:
    """Divides each neuron by its running RMS and restores the norm of the matrix (NorMuon).

    Args:
      u: Directions; float32[..., inputs, outputs].
      second_moment: Factored second moment, see `second_moment_like`.
      beta: Decay of the second moment; scalar.

    Returns:
      (normalised directions, new second moment).
    """
    axis = reduced_axis(u.shape)
    size = u.shape[axis]
    square = jnp.mean(jnp.square(u), axis=axis, keepdims=True)
    second_moment = second_moment + (1.0 - beta) * (square - second_moment)
    step = jax.lax.rsqrt(jnp.maximum(second_moment, 1e-10))
    norm = jnp.sqrt(jnp.sum(square, axis=(INPUTS, OUTPUTS), keepdims=True) * size)
    scaled = jnp.sum(square * size * jnp.square(step), axis=(INPUTS, OUTPUTS), keepdims=True)
    return u * (step * (norm / jnp.maximum(jnp.sqrt(scaled), 1e-10))), second_moment


def momentum_step(
    g: jax.Array, buffer: jax.Array, coefficient: Any, nesterov: Any
) -> tuple[jax.Array, jax.Array]:
    """Averages gradients exponentially, without bias correction.

    Args:
      g: Gradients; [..., inputs, outputs].
      buffer: Average before this step; [..., inputs, outputs].
      coefficient: Decay of the average; scalar.
      nesterov: Whether the direction looks ahead along the momentum; boolean scalar.

    Returns:
      (momentum direction, new average).
    """
    buffer = buffer + (1.0 - coefficient) * (g - buffer)
    return select(nesterov, g + coefficient * (buffer - g), buffer), buffer


def muon_step(
    gradient: jax.Array,
    momentum: jax.Array,
    second_moment: jax.Array,
    parameter: Any,
    knobs: Knobs,
    *,
    dtype: Any = jnp.float32,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes the update of matrices of one shape; the built-in function of slot `direction`.

    Args:
      gradient: Gradients; float32[..., inputs, outputs].
      momentum: Momentum; float32[..., inputs, outputs].
      second_moment: Factored second moment, see `second_moment_like`.
      parameter: Matrices, which this function does not use.
      knobs: Actuators and switches; scalars.
      dtype: Dtype of the Polar Express iteration.

    Returns:
      (direction, new momentum, new second moment).
    """
    del parameter
    coefficient, nesterov = knobs.momentum, knobs.nesterov
    before, buffer_pre = momentum_step(gradient, momentum, coefficient, nesterov)
    source = select(knobs.momentum_placement == PRE, before, gradient)
    u = direction(source, knobs, dtype)
    after, buffer_post = momentum_step(u, momentum, coefficient, nesterov)
    is_post = knobs.momentum_placement == POST
    u = select(is_post, after, u)
    buffer = select(is_post, buffer_post, buffer_pre)
    scaled, updated = normalise_variance(u, second_moment, knobs.second_moment_beta)
    return (
        select(knobs.second_moment, scaled, u),
        buffer,
        select(knobs.second_moment, updated, second_moment),
    )


def scale_by_muon(
    spec: OptimizerSpec,
    momentum: Any = None,
    *,
    dtype: Any = None,
    slots: Slots = BUILT_IN,
) -> optax.GradientTransformationExtraArgs:
    """Turns gradients into Muon directions of Frobenius norm `sqrt(min(inputs, outputs))`.

    Args:
      spec: Policy of numbers or traced scalars.
      momentum: Momentum coefficient, a number or a schedule; by default `spec.momentum`.
      dtype: Dtype of the Polar Express iteration; float32 by default.
      slots: Functions that replace the built-in ones.

    Returns:
      A transform whose `update` takes `actuators` as an extra argument.
    """
    momentum = spec.momentum if momentum is None else momentum
    dtype = jnp.float32 if dtype is None else dtype

    def init_fn(params):
        return MuonState(
            count=jnp.zeros((), jnp.int32),
            momentum=jax.tree.map(jnp.zeros_like, params),
            second_moment=jax.tree.map(second_moment_like, params),
        )

    def update_fn(updates, state, params=None, *, actuators, **extra_args):
        del extra_args
        coefficient = momentum(state.count) if callable(momentum) else momentum
        if hasattr(coefficient, "dtype"):
            coefficient = jnp.asarray(coefficient, jnp.float32)
        knobs = knobs_of(spec, actuators, coefficient)
        step = slots.direction or functools.partial(muon_step, dtype=dtype)

        def in_float32(*arrays):
            results = step(*(x.astype(jnp.float32) for x in arrays), knobs)
            return tuple(x.astype(like.dtype) for x, like in zip(results, arrays, strict=False))

        results = jax.tree.map(in_float32, updates, state.momentum, state.second_moment, params)
        out, buffers, moments = jax.tree.transpose(
            jax.tree.structure(updates), jax.tree.structure((0, 0, 0)), results
        )
        return out, MuonState(optax.safe_increment(state.count), buffers, moments)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
