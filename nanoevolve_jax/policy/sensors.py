"""Sensors: scale-free numbers computed from loss, gradients and updates.

A policy that was found with a small model and short runs should also work for large models. The
time constants of averages are therefore shares of the run instead of numbers of steps. Norms are
compared by their logarithms. Progress is a slope in log-log coordinates, so its value is `a` at
every step if the loss follows a power law `c * t**-a`. The alignment of gradients is a cosine `c`.
It is not corrected for the batch size. Noise alone would make `c / (1 - c)` grow with the batch
size (arXiv:1812.06162), but learning rates proportional to the square root of the batch size
compensate for that, as `python -m benchmarks.sensors` shows.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nanoevolve_jax.policy.spec import SENSORS, Sensors, StatefulControl

REFERENCE_STEPS = 1000  # horizon for which control.ema_beta is given, in steps
SLOW_WINDOW = 8.0  # ratio of the time constants of the slow and the fast averages
SAMPLE_STRIDE = 29  # 1/29 of the gradient is sampled; a prime stride visits all columns
_TINY, _HUGE = 1.2e-38, 3.4e38  # range of float32, at which logarithms saturate


class Signals(NamedTuple):
    """Raw observations of one step; float32 scalars."""

    log_loss: Any
    log_step: Any
    log_grad_norm: Any
    log_update_ratio: Any
    alignment: Any


class Averages(NamedTuple):
    """Exponential averages of the signals, each with its total weight.

    Dividing a total by its weight corrects the bias towards the initial zeros. A signal that does
    not exist at a step, such as the alignment at step 0, does not add any weight.
    """

    total: jax.Array  # shape=(2, signals), dtype=jnp.float32; fast and slow
    weight: jax.Array  # shape=(2, signals), dtype=jnp.float32

    def mean(self, row: int) -> Signals:
        """Returns the bias-corrected averages.

        Args:
          row: 0 for the fast averages, 1 for the slow ones.
        """
        return Signals(*(self.total[row] / jnp.maximum(self.weight[row], _TINY)))

    def seen(self, row: int) -> Signals:
        """Returns whether each signal has been observed at least once.

        Args:
          row: 0 for the fast averages, 1 for the slow ones.
        """
        return Signals(*(self.weight[row] > 0))


def init_averages() -> Averages:
    """Returns the averages before the first observation."""
    shape = (2, len(Signals._fields))
    return Averages(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))


def update_averages(
    averages: Averages, signals: Signals, seen: Signals, ema_beta: Any, total_steps: Any
) -> Averages:
    """Adds the signals of one step to the averages.

    Args:
      averages: Averages before the step.
      signals: Signals of the step; float32 scalars.
      seen: Whether each signal is averaged; boolean scalars.
      ema_beta: Decay of the fast averages at a horizon of `REFERENCE_STEPS`; scalar.
      total_steps: Number of steps of the run; scalar.

    Returns:
      Averages after the step.
    """
    fast = jnp.asarray(ema_beta, jnp.float32) ** (REFERENCE_STEPS / total_steps)
    beta = jnp.stack([fast, fast ** (1.0 / SLOW_WINDOW)])[:, None]  # [2, 1]
    values = jnp.stack([jnp.asarray(x, jnp.float32) for x in signals])[None]  # [1, 5]
    present = jnp.stack([jnp.asarray(x, bool) for x in seen])[None]  # [1, 5]
    return Averages(
        jnp.where(present, beta * averages.total + (1 - beta) * values, averages.total),
        jnp.where(present, beta * averages.weight + (1 - beta), averages.weight),
    )


def safe_log(x: Any) -> jax.Array:
    """Returns the natural logarithm of `x` after clipping it to the positive range of float32.

    Args:
      x: Array of any shape.

    Returns:
      Finite numbers, or NaN where `x` is NaN; float32, with the shape of `x`.
    """
    return jnp.log(jnp.clip(jnp.asarray(x, jnp.float32), _TINY, _HUGE))


def squared_norm(tree: Any) -> jax.Array:
    """Returns the sum of squares over all entries of a tree; float32[]."""
    squares = [jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)]
    return sum(squares, jnp.zeros((), jnp.float32))


def log_norm(tree: Any) -> jax.Array:
    """Returns the logarithm of the global norm of a tree, which cannot overflow; float32[]."""
    return 0.5 * safe_log(squared_norm(tree))


def sample_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of the sample of a matrix [..., inputs, outputs]."""
    *stack, inputs, outputs = shape
    return (*stack, -(-inputs * outputs // SAMPLE_STRIDE))


def sample_entries(tree: Any) -> Any:
    """Samples the entries of every matrix and scales the samples to a largest magnitude of 1.

    Args:
      tree: Tree of matrices; each [..., inputs, outputs].

    Returns:
      Tree of samples, see `sample_shape`. They always have the same positions. A sampled entry that
      is not finite makes the sample not finite.
    """
    sample = jax.tree.map(lambda x: x.reshape(*x.shape[:-2], -1)[..., ::SAMPLE_STRIDE], tree)
    peaks = [jnp.max(jnp.abs(x)).astype(jnp.float32) for x in jax.tree.leaves(sample)]
    peak = jnp.maximum(jnp.max(jnp.stack(peaks)), _TINY) if peaks else 1.0
    return jax.tree.map(lambda x: (x / peak).astype(x.dtype), sample)


def cosine(a: Any, b: Any) -> jax.Array:
    """Returns the cosine of the angle between two trees of samples.

    Args:
      a: Tree of samples.
      b: Tree of samples with the structure and shapes of `a`.

    Returns:
      Cosine in [-1, 1]; float32[]. It is 0 if either tree is zero, and NaN if either is not finite.
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
    """Returns the signals of one step, and whether each of them is to be averaged.

    A signal is not averaged if it is not finite, so a single bad step does not affect the averages.
    Signals that refer to the previous step are not averaged at the first step.

    Args:
      loss: Loss of this step; float32[].
      grads: Gradients of the matrices.
      params: Matrices before the step.
      step: Number of earlier steps; int32[].
      sample: Sample of the gradients, see `sample_entries`.
      previous_sample: Sample of the gradients of the previous step.
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
        log_step=finite_loss,  # averaged with the loss, because progress is a slope
        log_grad_norm=jnp.isfinite(signals.log_grad_norm),
        log_update_ratio=started & jnp.isfinite(last_log_update_ratio),
        alignment=started & jnp.isfinite(signals.alignment),
    )
    return signals, finite


def raw_sensors(averages: Averages, first_log_loss: Any, step: Any, total_steps: Any) -> Sensors:
    """Computes the sensors before squashing.

    Args:
      averages: Averages that include this step.
      first_log_loss: Log of the first finite loss; float32[].
      step: Number of earlier steps; scalar.
      total_steps: Number of steps of the run; scalar.

    Returns:
      Sensors; float32 scalars.
    """
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
    """Squashes sensors by `tanh(raw / normaliser)`, except for the step fraction.

    Args:
      raw: Sensors before squashing; float32 scalars.
      normalisers: Raw values at which the sensors saturate; scalars above 0.

    Returns:
      Sensors in [-1, 1]; float32 scalars.
    """
    squashed = Sensors(*(jnp.tanh(r / n) for r, n in zip(raw, normalisers, strict=True)))
    rows = SENSORS._asdict().items()
    return squashed._replace(**{x: getattr(raw, x) for x, row in rows if row.normaliser is None})


def gate_value(control: StatefulControl, sensors: Sensors, extra: Sequence[Any] = ()) -> jax.Array:
    """Computes the gate, `sigmoid(sharpness * (bias + sum(coefficients * sensors)))`.

    Args:
      control: Parameters of the gate.
      sensors: Squashed sensors; float32 scalars.
      extra: Extra sensors, which have a coefficient of 1; float32 scalars.

    Returns:
      Value of the gate in [0, 1]; float32[].
    """
    drive = sum(c * s for c, s in zip(control.coefficients, sensors, strict=True))
    drive = sum(extra, drive)
    return jax.nn.sigmoid(jnp.asarray(control.sharpness * (control.bias + drive), jnp.float32))
