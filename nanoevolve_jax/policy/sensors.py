"""Sensors: scale-free numbers computed from loss, gradients and updates.

A policy from a small model and a short run should work on a large one. Therefore averages look
back over a share of the run instead of a number of steps. Norms enter as changes of their
logarithm. Progress is a slope in log-log coordinates, so a power law `L = c * t**-a` has the value
`a` at every step. The alignment of gradients is a cosine. It is not corrected for the batch size:
noise alone would make `c / (1 - c)` grow with the batch (arXiv:1812.06162), but learning rates
that grow with the square root of the batch compensate for that, as `python -m benchmarks.sensors`
shows.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nanoevolve_jax.policy.spec import SENSORS, Sensors, StatefulControl

REFERENCE_STEPS = 1000  # control.ema_beta is quoted at this horizon
SLOW_WINDOW = 8.0  # the slow average looks back this much further than the fast one
SAMPLE_STRIDE = 29  # keeps 1/29 of the gradient; a prime meets every column in turn
_TINY, _HUGE = 1.2e-38, 3.4e38  # float32's own range: where logarithms saturate


class Signals(NamedTuple):
    """Raw observations of one step; float32 scalars."""

    log_loss: Any
    log_step: Any
    log_grad_norm: Any
    log_update_ratio: Any
    alignment: Any


class Averages(NamedTuple):
    """Exponential averages of the signals with their own weights.

    Dividing by the weight corrects the bias of the first steps. An observation that does not exist
    yet, such as a previous gradient at step 0, adds no weight.
    """

    total: jax.Array  # shape=(2, signals), dtype=jnp.float32; fast and slow
    weight: jax.Array  # shape=(2, signals), dtype=jnp.float32

    def mean(self, row: int) -> Signals:
        """Returns the corrected averages of row 0 (fast) or 1 (slow)."""
        return Signals(*(self.total[row] / jnp.maximum(self.weight[row], _TINY)))

    def seen(self, row: int) -> Signals:
        """Returns whether each signal has been averaged; booleans."""
        return Signals(*(self.weight[row] > 0))


def init_averages() -> Averages:
    """Returns averages without any observation."""
    shape = (2, len(Signals._fields))
    return Averages(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))


def update_averages(
    averages: Averages, signals: Signals, seen: Signals, ema_beta: Any, total_steps: Any
) -> Averages:
    """Adds the signals of one step where `seen` is true."""
    fast = jnp.asarray(ema_beta, jnp.float32) ** (REFERENCE_STEPS / total_steps)
    beta = jnp.stack([fast, fast ** (1.0 / SLOW_WINDOW)])[:, None]  # [2, 1]
    values = jnp.stack([jnp.asarray(x, jnp.float32) for x in signals])[None]  # [1, 5]
    present = jnp.stack([jnp.asarray(x, bool) for x in seen])[None]  # [1, 5]
    return Averages(
        jnp.where(present, beta * averages.total + (1 - beta) * values, averages.total),
        jnp.where(present, beta * averages.weight + (1 - beta), averages.weight),
    )


def safe_log(x: Any) -> jax.Array:
    """Returns the natural logarithm, which saturates at float32's range; NaN stays NaN."""
    return jnp.log(jnp.clip(jnp.asarray(x, jnp.float32), _TINY, _HUGE))


def squared_norm(tree: Any) -> jax.Array:
    """Returns the sum of squares over a tree, in float32; 0 for an empty tree."""
    squares = [jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)]
    return sum(squares, jnp.zeros((), jnp.float32))


def log_norm(tree: Any) -> jax.Array:
    """Returns the logarithm of the global norm, which saturates instead of overflowing."""
    return 0.5 * safe_log(squared_norm(tree))


def sample_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of the sample of a matrix [..., inputs, outputs]."""
    *stack, inputs, outputs = shape
    return (*stack, -(-inputs * outputs // SAMPLE_STRIDE))


def sample_entries(tree: Any) -> Any:
    """Returns a fixed, scattered sample of every matrix's entries, scaled to a largest of 1.

    A gradient that is not finite gives a sample that is not finite.
    """
    sample = jax.tree.map(lambda x: x.reshape(*x.shape[:-2], -1)[..., ::SAMPLE_STRIDE], tree)
    peaks = [jnp.max(jnp.abs(x)).astype(jnp.float32) for x in jax.tree.leaves(sample)]
    peak = jnp.maximum(jnp.max(jnp.stack(peaks)), _TINY) if peaks else 1.0
    return jax.tree.map(lambda x: (x / peak).astype(x.dtype), sample)


def cosine(a: Any, b: Any) -> jax.Array:
    """Returns the cosine of two trees of samples.

    It is 0 if either tree is zero, and NaN if either is not finite.
    """
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    zero = jnp.zeros((), jnp.float32)
    dot = sum((jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32)) for x, y in pairs), zero)
    scale = jnp.sqrt(squared_norm(a)) * jnp.sqrt(squared_norm(b))
    return jnp.where(scale == 0, 0.0, dot / jnp.where(scale == 0, 1.0, scale))


def observe(
    loss: Any,
    grads: Any,
    params: Any,
    step: jax.Array,
    sample: Any,
    previous_sample: Any,
    last_log_update_ratio: jax.Array,
) -> tuple[Signals, Signals]:
    """Returns the signals of one step, and whether each exists and is finite.

    A signal that is not finite is not averaged, so one bad step leaves no trace. Nor is a signal
    that compares with the previous step at the first one.

    Args:
      loss: Loss of this step; float32[].
      grads: Gradients of the matrices.
      params: Matrices before the step.
      step: Number of steps taken before; int32[].
      sample: `sample_entries` of the gradients.
      previous_sample: The same of the previous step.
      last_log_update_ratio: Log of update norm over parameter norm at the previous step; float32[].
    """
    del params  # for sensors that depend on them
    started = step > 0
    signals = Signals(
        log_loss=safe_log(loss),
        log_step=jnp.log(step.astype(jnp.float32) + 1.0),
        log_grad_norm=log_norm(grads),
        log_update_ratio=last_log_update_ratio,
        alignment=cosine(sample, previous_sample),
    )
    finite_loss = jnp.isfinite(loss)
    finite = Signals(
        log_loss=finite_loss,
        log_step=finite_loss,  # progress is the slope of one over the other
        log_grad_norm=jnp.isfinite(signals.log_grad_norm),
        log_update_ratio=started & jnp.isfinite(last_log_update_ratio),
        alignment=started & jnp.isfinite(signals.alignment),
    )
    return signals, finite


def raw_sensors(averages: Averages, first_log_loss: Any, step: Any, total_steps: Any) -> Sensors:
    """Returns the sensors before squashing, from averages that include this step."""
    fast, slow = averages.mean(0), averages.mean(1)
    elapsed = fast.log_step - slow.log_step
    slope = (fast.log_loss - slow.log_loss) / jnp.where(elapsed > 0, elapsed, 1.0)
    return Sensors(
        loss_ema=1.0 - jnp.exp(fast.log_loss - first_log_loss),
        loss_improvement_ema=jnp.where(elapsed > 0, -slope, 0.0),
        grad_norm_ema=fast.log_grad_norm - slow.log_grad_norm,
        update_ratio_ema=fast.log_update_ratio - slow.log_update_ratio,
        grad_alignment_ema=fast.alignment,
        step_fraction=jnp.asarray(step, jnp.float32) / total_steps,
    )


def squash(raw: Sensors, normalisers: Sensors) -> Sensors:
    """Returns `tanh(raw / normaliser)` for every sensor except the step fraction."""
    squashed = Sensors(*(jnp.tanh(r / n) for r, n in zip(raw, normalisers, strict=True)))
    rows = SENSORS._asdict().items()
    return squashed._replace(**{x: getattr(raw, x) for x, row in rows if row.normaliser is None})


def gate_value(control: StatefulControl, sensors: Sensors, extra: Sequence[Any] = ()) -> jax.Array:
    """Returns the gate in [0, 1], `sigmoid(sharpness * (bias + sum(coefficients * sensors)))`.

    Args:
      control: Numbers of the gate.
      sensors: Squashed sensors; float32 scalars.
      extra: Extra sensors of weight 1; float32 scalars.

    Returns:
      float32[].
    """
    drive = sum(c * s for c, s in zip(control.coefficients, sensors, strict=True))
    drive = sum(extra, drive)
    return jax.nn.sigmoid(jnp.asarray(control.sharpness * (control.bias + drive), jnp.float32))
